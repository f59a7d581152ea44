#!/bin/bash
# Sets up emulated ARM phones for benchmarks.arm, from apt and pip alone: Debian 12 on x86-64, root,
# about 2 minutes and 400 MB. Can be run again.
#
#   PY=.venv/bin/python bash benchmarks/emulation/setup.sh FOLDER
#
# FOLDER then holds
#   run.sh           run.sh CPU ARGS...  runs aarch64 Python on an emulated CPU; COUNT=FILE counts its instructions
#   root             Python 3.11 of Debian arm64; site: NumPy and LiteRT for aarch64
#   cpus/CPU         the root with a phone's /proc/cpuinfo and /sys, from which XNNPACK chooses its kernels
#   qemu_new         qemu 10 of Debian 13: the system's 7.2 has no Cortex-A710. Its plugins work on 7.2 only.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?setup.sh FOLDER}; py=$(realpath -s "$(command -v "${PY:-python3}")"); mkdir -p "$folder"; cd "$folder"
litert=$("$py" -c 'import importlib.metadata as m; print(m.version("ai-edge-litert"))')
numpy=${NUMPY:-2.2.6}   # any with a wheel for Python 3.11

unpack() {  # SUITE ARCHITECTURE DIRECTORY PACKAGE...: packages of any release, beside the system's
  local suite=$1 arch=$2 dir=$3 state=$PWD/$3.apt; shift 3
  mkdir -p "$state"/{state/lists/partial,cache/archives/partial,etc} "$dir"; : > "$state/state/status"
  local mirror; mirror=$(apt-get indextargets --format '$(SITE)' | grep -v security | head -n 1)
  echo "deb $mirror $suite main" > "$state/sources.list"
  local options=(-o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/nonexistent
    -o APT::Architecture="$arch" -o APT::Architectures::="$arch" -o Dir::State="$state/state"
    -o Dir::State::status="$state/state/status" -o Dir::Cache="$state/cache"
    -o APT::Install-Recommends=false -o Debug::NoLocking=1 -o APT::Sandbox::User=root -qq)
  apt-get "${options[@]}" update
  apt-get "${options[@]}" -y --download-only install "$@" > "$state/log" 2>&1 || { tail -5 "$state/log"; exit 1; }
  for deb in "$state"/cache/archives/*.deb; do dpkg -x "$deb" "$dir"; done
}

make_cpu() {  # NAME PART VARIANT MHZ FEATURES: what cpuinfo reads; with the host's files it crashes
  local root=cpus/$1; mkdir -p "$root/proc" "$root/sys/devices/system/cpu"
  # qemu looks every absolute path up here first.
  for d in lib usr etc bin; do ln -sfn ../../root/$d "$root/$d"; done
  : > "$root/proc/cpuinfo"
  for c in 0 1 2 3; do
    printf 'processor\t: %d\nBogoMIPS\t: 38.40\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: %s\nCPU part\t: %s\nCPU revision\t: 1\n\n' \
      $c "$5" "$3" "$2" >> "$root/proc/cpuinfo"
    local d=$root/sys/devices/system/cpu/cpu$c f; mkdir -p "$d/cpufreq" "$d/topology"
    echo "${4}000" > "$d/cpufreq/cpuinfo_max_freq"; echo 300000 > "$d/cpufreq/cpuinfo_min_freq"
    echo 0 > "$d/topology/physical_package_id"; echo $c > "$d/topology/core_id"
    echo f > "$d/topology/core_siblings"; echo $c > "$d/topology/thread_siblings_list"
    for f in core_siblings_list cluster_cpus_list package_cpus_list; do echo 0-3 > "$d/topology/$f"; done
    local i=0 level kind size shared
    while read -r level kind size shared; do
      local k=$d/cache/index$i; mkdir -p "$k"; i=$((i + 1))
      echo "$level" > "$k/level"; echo "$kind" > "$k/type"; echo "$size" > "$k/size"; echo "$shared" > "$k/shared_cpu_list"
      echo 64 > "$k/coherency_line_size"; echo 4 > "$k/ways_of_associativity"
    done <<< "1 Data 32K $c
1 Instruction 32K $c
2 Unified 512K 0-3"
  done
  for f in possible present online; do echo 0-3 > "$root/sys/devices/system/cpu/$f"; done
  echo 3 > "$root/sys/devices/system/cpu/kernel_max"
}

command -v qemu-aarch64 > /dev/null || { apt-get update -qq; apt-get install -y -qq --no-install-recommends qemu-user; }
[ -d qemu_new/usr ] || unpack trixie "$(dpkg --print-architecture)" qemu_new qemu-user
[ -d root/usr ] || unpack bookworm arm64 root python3 libstdc++6 libgomp1
if [ ! -d site ]; then
  platforms=(); for p in manylinux_2_27 manylinux_2_28 manylinux_2_17 manylinux2014; do platforms+=(--platform "${p}_aarch64"); done
  "$py" -m pip download -q -d wheels "${platforms[@]}" --only-binary=:all: --no-deps --python-version 3.11 \
    "ai-edge-litert==$litert" "numpy==$numpy" flatbuffers typing-extensions tqdm protobuf ml_dtypes backports.strenum
  mkdir site.new; for wheel in wheels/*.whl; do python3 -m zipfile -e "$wheel" site.new; done; mv site.new site
fi
base="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
v82="$base atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"
v9="$v82 jscvt fcma flagm sb paca pacg dcpodp flagm2 frint i8mm bf16 bti"
make_cpu cortex-a53 0xd03 0x0 1400 "$base"
make_cpu cortex-a76 0xd0b 0x3 2400 "$v82"
make_cpu cortex-a710 0xd47 0x2 2800 "$v9 sve sve2"
make_cpu i8mm 0xd48 0x2 2800 "$v9"   # int8 matrix products without SVE, on which plugins work
gcc -shared -fPIC -O2 -o count.so "$here/count.c"
cat > run.sh <<'RUN'
#!/bin/bash
# run.sh CPU ARGS...: aarch64 Python on an emulated CPU. COUNT=FILE writes the number of instructions there.
here=$(cd "$(dirname "$0")" && pwd); cpu=$1; shift
qemu=(qemu-aarch64) model=$cpu
[ "$cpu" = cortex-a710 ] && qemu=("$here/qemu_new/usr/bin/qemu-aarch64")
[ "$cpu" = i8mm ] && model=max,sme=off,sve=off   # qemu 7.2 computes SME wrongly
[ -n "${COUNT:-}" ] && qemu+=(-plugin "$here/count.so")
exec nice -n 5 "${qemu[@]}" -cpu "$model" -L "$here/cpus/$cpu" \
  -E PYTHONPATH="$here/site",PYTHONHASHSEED=0,PYTHONDONTWRITEBYTECODE=1,OPENBLAS_NUM_THREADS=1 "$here/root/usr/bin/python3.11" "$@"
RUN
chmod +x run.sh
for cpu in cortex-a53 cortex-a76 cortex-a710 i8mm; do
  ./run.sh $cpu -c "import platform, ai_edge_litert.interpreter; print('$cpu runs:', platform.machine())"
done
