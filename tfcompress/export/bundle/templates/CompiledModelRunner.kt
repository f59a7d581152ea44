package @PACKAGE@

import android.content.Context
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer

/** Runs the model by LiteRT's CompiledModel, on the CPU: under XNNPACK. */
class CompiledModelRunner(context: Context, threads: Int = 2) : ModelRunner {
    override val card = ModelCard.read(context.assets)
    private val model: CompiledModel
    private val buffers = HashMap<String?, Pair<Map<String, TensorBuffer>, Map<String, TensorBuffer>>>()

    init {
        val options = CompiledModel.Options(Accelerator.CPU)
        options.cpuOptions = CompiledModel.CpuOptions(numThreads = threads)
        model = CompiledModel.create(context.assets, ModelCard.MODEL, options)
    }

    override fun run(inputs: Map<String, Any>, signature: String?): Map<String, Any> {
        val found = card.signature(signature)
        val (given, gives) = buffers.getOrPut(found.key) {
            Pair(
                found.inputs.associate { it.name to model.createInputBuffer(it.name, found.key) },
                found.outputs.associate { it.name to model.createOutputBuffer(it.name, found.key) },
            )
        }
        for (tensor in found.inputs) {
            write(given.getValue(tensor.name), inputs.getValue(tensor.name))
        }
        model.run(given, gives, found.key)
        return found.outputs.associate { it.name to read(gives.getValue(it.name), it.type) }
    }

    override fun close() {
        for ((given, gives) in buffers.values) {
            (given.values + gives.values).forEach { it.close() }
        }
        model.close()
    }

    private fun write(buffer: TensorBuffer, values: Any) {
        when (values) {
            is ByteArray -> buffer.writeInt8(values)
            is IntArray -> buffer.writeInt(values)
            is FloatArray -> buffer.writeFloat(values)
            is BooleanArray -> buffer.writeBoolean(values)
            else -> throw IllegalArgumentException("no array of a tensor: ${values::class}")
        }
    }

    private fun read(buffer: TensorBuffer, type: String): Any = when (type) {
        "int8", "uint8" -> buffer.readInt8()
        "int32" -> buffer.readInt()
        "float32" -> buffer.readFloat()
        "bool" -> buffer.readBoolean()
        else -> throw IllegalArgumentException("CompiledModel reads no $type; use InterpreterRunner")
    }
}
