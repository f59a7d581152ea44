"""Reading and writing the flatbuffer of a `.tflite`."""
