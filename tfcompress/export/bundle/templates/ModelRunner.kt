package @PACKAGE@

/**
 * Runs the model.
 *
 * Arrays are those of the runtime's buffers: ByteArray for int8 and uint8, IntArray for int32,
 * FloatArray for float32, BooleanArray for bool. `Tensor.quantize` and `dequantize` go between
 * codes and real values.
 */
interface ModelRunner : AutoCloseable {
    val card: ModelCard

    /** Computes the outputs, by name, of inputs by name. */
    fun run(inputs: Map<String, Any>, signature: String? = null): Map<String, Any>
}
