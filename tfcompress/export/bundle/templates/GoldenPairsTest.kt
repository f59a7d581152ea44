package @PACKAGE@

import android.content.Context
import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import java.security.MessageDigest
import kotlin.math.abs
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith

/** The outputs on this phone are those of the computer that exported the model. */
@RunWith(AndroidJUnit4::class)
class GoldenPairsTest {
    private val context: Context = InstrumentationRegistry.getInstrumentation().targetContext
    private val golden: JSONObject = InstrumentationRegistry.getInstrumentation().context.assets
        .open("@MODEL@.golden.json").bufferedReader().use { JSONObject(it.readText()) }

    @Test
    fun theFileIsTheOneOfThePairs() {
        val bytes = context.assets.open(ModelCard.MODEL).use { it.readBytes() }
        val digest = MessageDigest.getInstance("SHA-256").digest(bytes)
        assertEquals(golden.getString("sha256"), digest.joinToString("") { "%02x".format(it) })
    }

    @Test
    fun compiledModel() = CompiledModelRunner(context).use(::replay)

    @Test
    fun interpreter() = InterpreterRunner(context).use(::replay)

    private fun replay(runner: ModelRunner) {
        val tolerance = golden.getDouble("tolerance_steps")
        val samples = golden.getJSONArray("samples")
        for (i in 0 until samples.length()) {
            val sample = samples.getJSONObject(i)
            val key = if (sample.isNull("signature")) null else sample.getString("signature")
            val signature = runner.card.signature(key)
            val inputs = signature.inputs.associate {
                it.name to array(sample.getJSONObject("inputs").getJSONArray(it.name), it)
            }
            val outputs = runner.run(inputs, key)
            for (tensor in signature.outputs) {
                val expected = sample.getJSONObject("outputs").getJSONArray(tensor.name)
                val step = golden.getJSONObject("steps").getJSONObject(key ?: "").getDouble(tensor.name)
                compare(outputs.getValue(tensor.name), expected, tensor, tolerance * step)
            }
        }
    }

    private fun compare(output: Any, expected: JSONArray, tensor: Tensor, allowed: Double) {
        val found = numbers(output, tensor)
        assertEquals(expected.length(), found.size)
        for (i in found.indices) {
            val difference = abs(found[i] - expected.getDouble(i))
            assertTrue("${tensor.name}[$i] is off by $difference", difference <= allowed)
        }
    }

    private fun numbers(output: Any, tensor: Tensor): DoubleArray = when (output) {
        is ByteArray -> DoubleArray(output.size) { tensor.code(output[it]).toDouble() }
        is IntArray -> DoubleArray(output.size) { output[it].toDouble() }
        is FloatArray -> DoubleArray(output.size) { output[it].toDouble() }
        is BooleanArray -> DoubleArray(output.size) { if (output[it]) 1.0 else 0.0 }
        else -> throw IllegalArgumentException("no array of a tensor: ${output::class}")
    }

    private fun array(values: JSONArray, tensor: Tensor): Any = when (tensor.type) {
        "int8", "uint8" -> ByteArray(values.length()) { values.getInt(it).toByte() }
        "int32" -> IntArray(values.length()) { values.getInt(it) }
        "float32" -> FloatArray(values.length()) { values.getDouble(it).toFloat() }
        "bool" -> BooleanArray(values.length()) { values.getInt(it) != 0 }
        else -> throw IllegalArgumentException("no array holds ${tensor.type}")
    }
}
