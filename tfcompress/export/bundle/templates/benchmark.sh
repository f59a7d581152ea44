#!/usr/bin/env bash
# Times @MODEL@.tflite on the phone that adb is connected to, by LiteRT's benchmark_model.
#   bash benchmark.sh path/to/benchmark_model [threads]
# A binary for arm64 is built from LiteRT's sources by
#   bazel build -c opt --config=android_arm64 //tflite/tools/benchmark:benchmark_model
# and TensorFlow's nightly builds have one, android_aarch64_benchmark_model.
set -euo pipefail
cd "$(dirname "$0")"
binary="${1:?usage: bash benchmark.sh path/to/benchmark_model [threads]}"
threads="${2:-2}"
folder=/data/local/tmp/tfcompress
adb shell mkdir -p "$folder"
adb push "$binary" "$folder/benchmark_model"
adb push "src/main/assets/@MODEL@.tflite" "$folder/@MODEL@.tflite"
adb shell chmod +x "$folder/benchmark_model"
adb shell "$folder/benchmark_model" "--graph=$folder/@MODEL@.tflite" "--num_threads=$threads" \
  --use_xnnpack=true --num_runs=100 --warmup_runs=10 --enable_op_profiling=true
