package @PACKAGE@

import android.content.res.AssetManager
import org.json.JSONArray
import org.json.JSONObject

/** A tensor as it goes into or comes out of the runtime, with a batch of 1. */
class Tensor(
    val name: String,
    val shape: IntArray,
    /** Such as "int8"; the runtime's buffer holds these numbers, row by row. */
    val type: String,
    /** Null where the tensor is not quantized. */
    val scale: Float?,
    val zeroPoint: Int,
) {
    val size: Int
        get() = shape.fold(1) { product, length -> product * length }

    /** Real values as codes: round(value / scale) + zero point, halves to even, as LiteRT does. */
    fun quantize(values: FloatArray): ByteArray {
        val step = requireNotNull(scale) { "$name is not quantized" }
        val lowest = if (type == "uint8") 0 else -128
        return ByteArray(values.size) { i ->
            val code = Math.rint((values[i] / step).toDouble()).toInt() + zeroPoint
            code.coerceIn(lowest, lowest + 255).toByte()
        }
    }

    /** Codes as real values: (code - zero point) * scale. */
    fun dequantize(codes: ByteArray): FloatArray {
        val step = requireNotNull(scale) { "$name is not quantized" }
        return FloatArray(codes.size) { i -> (code(codes[i]) - zeroPoint) * step }
    }

    /** The number that a byte of the buffer stands for. */
    fun code(byte: Byte): Int = if (type == "uint8") byte.toInt() and 0xff else byte.toInt()
}

/** What the file computes: one function from inputs to outputs, by name. */
class Signature(val key: String?, val inputs: List<Tensor>, val outputs: List<Tensor>)

/** The card of the model, `@MODEL@.json`: how to feed it and how to read its outputs. */
class ModelCard private constructor(content: JSONObject) {
    val sha256: String = content.getJSONObject("file").getString("sha256")
    val signatures: List<Signature> = objects(content.getJSONArray("signatures")).map { entry ->
        Signature(
            if (entry.isNull("key")) null else entry.getString("key"),
            objects(entry.getJSONArray("inputs")).map(::tensor),
            objects(entry.getJSONArray("outputs")).map(::tensor),
        )
    }

    /** Class names; empty where the model has none. */
    val labels: List<String> = content.optJSONArray("labels")?.let { names ->
        List(names.length()) { i -> names.getString(i) }
    } ?: emptyList()

    /** The signature of this key; the only one where the key is null. */
    fun signature(key: String? = null): Signature =
        if (key == null) signatures.single() else signatures.first { it.key == key }

    companion object {
        const val MODEL = "@MODEL@.tflite"

        fun read(assets: AssetManager): ModelCard =
            ModelCard(JSONObject(assets.open("@MODEL@.json").bufferedReader().use { it.readText() }))

        private fun objects(entries: JSONArray): List<JSONObject> =
            List(entries.length()) { i -> entries.getJSONObject(i) }

        private fun tensor(entry: JSONObject): Tensor {
            val shape = entry.getJSONArray("shape")
            return Tensor(
                entry.getString("name"),
                IntArray(shape.length()) { i -> shape.getInt(i) },
                entry.getString("dtype"),
                if (entry.isNull("scale")) null else entry.getDouble("scale").toFloat(),
                if (entry.isNull("zero_point")) 0 else entry.getInt("zero_point"),
            )
        }
    }
}
