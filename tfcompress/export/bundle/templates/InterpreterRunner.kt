package @PACKAGE@

import android.content.Context
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

/** Runs the model by the Interpreter, which runs under XNNPACK too. */
class InterpreterRunner(context: Context, threads: Int = 2) : ModelRunner {
    override val card = ModelCard.read(context.assets)
    private val interpreter: Interpreter

    init {
        val bytes = context.assets.open(ModelCard.MODEL).use { it.readBytes() }
        val file = ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder()).put(bytes)
        interpreter = Interpreter(file, Interpreter.Options().setNumThreads(threads))
    }

    override fun run(inputs: Map<String, Any>, signature: String?): Map<String, Any> {
        val found = card.signature(signature)
        val given = found.inputs.associate { it.name to buffer(it, inputs.getValue(it.name)) }
        val gives = found.outputs.associate { it.name to buffer(it, null) }
        interpreter.runSignature(given, gives, found.key)
        return found.outputs.associate { it.name to array(gives.getValue(it.name), it) }
    }

    override fun close() = interpreter.close()

    private fun buffer(tensor: Tensor, values: Any?): ByteBuffer {
        val buffer = ByteBuffer.allocateDirect(tensor.size * width(tensor.type))
        buffer.order(ByteOrder.nativeOrder())
        when (values) {
            null -> return buffer
            is ByteArray -> buffer.put(values)
            is IntArray -> buffer.asIntBuffer().put(values)
            is FloatArray -> buffer.asFloatBuffer().put(values)
            is BooleanArray -> values.forEach { buffer.put(if (it) 1.toByte() else 0.toByte()) }
            else -> throw IllegalArgumentException("no array of a tensor: ${values::class}")
        }
        buffer.rewind()
        return buffer
    }

    private fun array(buffer: ByteBuffer, tensor: Tensor): Any {
        buffer.rewind()
        return when (tensor.type) {
            "int8", "uint8" -> ByteArray(tensor.size).also { buffer.get(it) }
            "int32" -> IntArray(tensor.size).also { buffer.asIntBuffer().get(it) }
            "float32" -> FloatArray(tensor.size).also { buffer.asFloatBuffer().get(it) }
            "bool" -> BooleanArray(tensor.size) { buffer.get(it) != 0.toByte() }
            else -> throw IllegalArgumentException("no array holds ${tensor.type}")
        }
    }

    private fun width(type: String): Int = when (type) {
        "int8", "uint8", "bool" -> 1
        else -> 4
    }
}
