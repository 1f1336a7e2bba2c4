//! image/kernel/build.sh takes the GNU toolchain and nothing of the caller's environment. A kernel that clang and LLD made
//! stays mute on Nitro (MystenLabs/hashi, pull request 789).

use std::sync::LazyLock;

use super::*;

/// The part of the kernel's source that configuring and patching read, so that nobody unpacks all of it several times.
static SOURCE: LazyLock<Place> = LazyLock::new(|| {
    let place = Place(tempfile::tempdir().unwrap());
    let read = "'*/Kconfig*' '*/Makefile*' '*/Kbuild*' '*/scripts/*' '*.config' '*/net/vmw_vsock/*'";
    place.shell(&format!(
        "mkdir -p image/kernel part; tar -xJf \"${{LINUX_SOURCE:-/usr/src/linux-source-6.12.tar.xz}}\" -C part --wildcards {read}
         cd part; tar -cf - * | xz -0 >../part.tar.xz; cd ..; rm -r part"
    ));
    place
});

/// `build.sh --config` of that source.
fn configuration(script: &Path) -> Command {
    let mut command = Command::new(script);
    command.arg("--config").env("LINUX_SOURCE", SOURCE.path("part.tar.xz"));
    command
}

fn build_sh() -> PathBuf {
    repository().join("image/kernel/build.sh")
}

#[test]
fn the_callers_environment_does_not_choose_the_kernels_toolchain_or_options() {
    let ordinary = stdout(&succeeds(configuration(&build_sh()).output().unwrap()));
    assert!(ordinary.contains("CONFIG_CC_IS_GCC=y\n") && ordinary.contains("CONFIG_LD_IS_BFD=y\n"));
    let mut other = configuration(Path::new("image/kernel/build.sh"));
    other.current_dir(repository()).env("CDPATH", format!("{}:.", SOURCE.0.path().display()));
    other.env("TAR_OPTIONS", "--exclude=Makefile");
    other.envs([("LLVM", "1"), ("LLVM_IAS", "1"), ("CC", "clang"), ("LD", "ld.lld"), ("HOSTCC", "clang")]);
    other.envs([("KCFLAGS", "-O0"), ("LOCALVERSION", "-other"), ("CROSS_COMPILE", "none-"), ("MAKEFLAGS", "-e")]);
    other.envs([("KCONFIG_ALLCONFIG", "/dev/null"), ("CONFIG_", "OTHER_"), ("ARCH", "arm64")]);
    assert_eq!(stdout(&succeeds(other.output().unwrap())), ordinary);
}

#[test]
fn a_compiler_and_a_linker_that_are_not_gnus_are_refused() {
    let place = Place::new();
    // What Kconfig tells them by (scripts/cc-version.sh and scripts/ld-version.sh in the kernel's source).
    let gcc = "exec /usr/bin/gcc -D__clang__ -D__clang_major__=19 -D__clang_minor__=1 -D__clang_patchlevel__=0 \"$@\"";
    let ld = "case $1 in -v | --version) echo 'LLD 19.1.0 (compatible with GNU linkers)' ;; *) exec /usr/bin/ld \"$@\" ;; esac";
    for (name, line) in [("gcc", gcc), ("ld", ld)] {
        place.write(name, format!("#!/bin/sh\n{line}\n"));
    }
    place.shell("mkdir bin; install -m 755 gcc ld bin/");
    let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap());
    let refused = configuration(&build_sh()).env("PATH", path).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    for line in ["Kconfig did not take these lines", "CONFIG_CC_IS_GCC=y", "CONFIG_LD_IS_BFD=y"] {
        assert!(stderr(&refused).contains(line), "{}", stderr(&refused));
    }
}

#[test]
fn a_patch_that_does_not_apply_ends_the_build() {
    let place = Place::new();
    place.shell(&format!("cp -r {} kernel", repository().join("image/kernel").display()));
    let patch = "--- a/Makefile\n+++ b/Makefile\n@@ -1 +1 @@\n-no such line\n+another\n";
    place.write("kernel/patches/0000-of-another-version.patch", patch);
    let refused = configuration(&place.path("kernel/build.sh")).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("0000-of-another-version.patch does not apply to "), "{}", stderr(&refused));
}

/// `make` is a stand-in, which keeps the environment that it was run with: a real build takes ten minutes.
#[test]
fn the_compilation_has_nothing_of_the_callers_environment() {
    for (arch, kbuild_arch, image) in
        [("x86_64", "x86_64", "arch/x86/boot/bzImage"), ("aarch64", "arm64", "arch/arm64/boot/Image")]
    {
        let place = Place(tempfile::tempdir().unwrap());
        let kept = place.path("environment");
        let make = format!(
            "#!/bin/sh\nenv >>{}\nmkdir -p $(dirname {image})\ndd if=/dev/zero of={image} bs=64 count=1 status=none\n",
            kept.display()
        );
        place.write("make", make);
        place.shell("mkdir bin; install -m 755 make bin/");
        let recipe = repository().join("image/kernel/recipe.sh");
        let script = format!(". {}; arch={arch} kbuild_arch={kbuild_arch} cross=''; compile out", recipe.display());
        let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap());
        let mut compile = Command::new("sh");
        compile.args(["-euc", &script]).current_dir(place.0.path()).env("PATH", path);
        compile.envs([("LLVM", "1"), ("KCFLAGS", "-O0"), ("CC", "clang"), ("MAKEFLAGS", "-e"), ("LOCALVERSION", "-x")]);
        succeeds(compile.output().unwrap());
        let environment = place.text("environment");
        let mut names: Vec<&str> = environment.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        // What the shell of the stand-in adds.
        names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
        names.sort_unstable();
        let expected = ["ARCH", "CROSS_COMPILE", "KBUILD_BUILD_HOST", "KBUILD_BUILD_TIMESTAMP", "KBUILD_BUILD_USER"];
        assert_eq!(names, [&expected[..], &["KBUILD_BUILD_VERSION", "LC_ALL", "PATH"]].concat(), "{arch}");
    }
}
