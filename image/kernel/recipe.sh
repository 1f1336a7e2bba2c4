# shellcheck shell=sh disable=SC2154
# How a kernel's bytes are made. build.sh sources this, and its text without comments is part of each kernel's key, so
# that only what can change the bytes is here. It uses $here, $source, $arch, $kbuild_arch, $cross, $unpatched.

# Runs a command of the kernel's build without the caller's environment: the build obeys LLVM, KCFLAGS, LOCALVERSION,
# MAKEFLAGS and some forty other variables, and none of them is in the key. With LLVM=1 it would be built by clang and
# LLD, and such a kernel stays mute on Nitro (MystenLabs/hashi, pull request 789). Nor does the image depend on this
# machine or on the time of the build.
clean() {
  env -i PATH="$PATH" LC_ALL=C ARCH="$kbuild_arch" CROSS_COMPILE="$cross" \
    KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_USER=teemark KBUILD_BUILD_HOST=teemark \
    KBUILD_BUILD_VERSION=1 "$@"
}

# The patches in the order in which they are applied.
patches() { [ -n "$unpatched" ] || find "$here/patches" -name '*.patch' | LC_ALL=C sort; }

# Each option of the configuration files once, as the last one has it.
wanted() { cat "$@" | sed -nE '/^CONFIG_|^# CONFIG_.* is not set$/p' | awk '
  { name = $1 == "#" ? $2 : substr($1, 1, index($1, "=") - 1); if (!(name in line)) names[++n] = name; line[name] = $0 }
  END { for (i = 1; i <= n; i++) print line[names[i]] }'; }

# Unpacks the source into the current folder, and applies the patches.
unpack() {
  # Half of the source is drivers that no enclave has a device for; of those the Kconfig files suffice.
  tar -xJf "$source" --strip-components=1 --exclude='*/drivers/gpu/*.[ch]' --exclude='*/drivers/media/*.[ch]' \
    --exclude='*/drivers/net/ethernet/*.[ch]' --exclude='*/drivers/net/wireless/*.[ch]' --exclude='*/sound/*.[ch]'
  patches | while read -r patch; do
    patch --strip=1 --forward --fuzz=0 --silent <"$patch" >&2 ||
      fail "$patch does not apply to $source. Port it to that version, or set LINUX_SOURCE to the one it was made for"
  done
}

# Configures the source in the current folder; a line of ours that Kconfig dropped or overruled ends the build.
configure() {
  clean make -s tinyconfig
  wanted "$@" >lines
  clean scripts/kconfig/merge_config.sh -m .config lines >/dev/null
  clean make -s olddefconfig
  while read -r line; do
    case $line in
      CONFIG_*) grep -qxF -- "$line" .config || echo "$line" ;;
      *)
        name=${line#\# }
        ! grep -q -- "^${name%% *}=" .config || echo "$line"
        ;;
    esac
  done <lines >lost
  if [ -s lost ]; then
    echo "image/kernel: Kconfig did not take these lines:" >&2
    cat lost >&2
    return 1
  fi
}

# Compiles the configured source into the file that an EIF takes.
compile() { # OUTPUT
  case $arch in
    x86_64)
      clean make -s -j"$(nproc)" bzImage >&2
      cp arch/x86/boot/bzImage "$1"
      ;;
    aarch64)
      # The EIF specification asks for the uncompressed Image.
      clean make -s -j"$(nproc)" Image >&2
      cp arch/arm64/boot/Image "$1"
      # text_offset (the kernel's Documentation/arch/arm64/booting.rst), which the kernel itself has as 0: Nitro loads it
      # that far into memory, and at 0 it cannot run (kernel/kernel.nix of aws-nitro-enclaves-sdk-bootstrap). 2 MiB.
      printf '\0\0\040\0\0\0\0\0' | dd of="$1" bs=8 seek=1 conv=notrunc status=none
      ;;
  esac
}
