//! What an image holds, and its measurements.

use super::*;

/// A ramdisk as cpio lists it: mode, links, owner, group, length, date, name.
fn listing(place: &Place, ramdisk: &str) -> Vec<String> {
    let list = place.shell(&format!("xz -dc <parts/{ramdisk} | cpio -itvn --quiet"));
    list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn the_first_ramdisk_has_init_and_the_second_the_daemon_with_its_files() {
    let place = Place::new();
    place.parts(&[]);
    let (init, daemon) = (place.read("init").len(), place.read("teemarkd").len());
    let (list, env) = (place.read("list.yaml").len(), place.read("env").len());
    let expected = [
        "drwxr-xr-x 1 0 0 0 Jan 1 1970 dev".to_owned(),
        "drwxr-xr-x 1 0 0 0 Jan 1 1970 etc".to_owned(),
        format!("-rwxr-xr-x 1 0 0 {init} Jan 1 1970 init"),
        "drwxr-xr-x 1 0 0 0 Jan 1 1970 proc".to_owned(),
        "drwxr-xr-x 1 0 0 0 Jan 1 1970 run".to_owned(),
        "drwxr-xr-x 1 0 0 0 Jan 1 1970 sys".to_owned(),
        "drwxrwxrwt 1 0 0 0 Jan 1 1970 tmp".to_owned(),
    ];
    assert_eq!(listing(&place, "ramdisk-0"), expected);
    let expected = [
        format!("-rw-r--r-- 1 0 0 {list} Jan 1 1970 allowed_endpoints.yaml"),
        "drwxr-xr-x 1 0 0 0 Jan 1 1970 etc".to_owned(),
        format!("-rw-r--r-- 1 0 0 {env} Jan 1 1970 etc/teemark.env"),
        "drwxr-xr-x 1 0 0 0 Jan 1 1970 opt".to_owned(),
        "drwxr-xr-x 1 0 0 0 Jan 1 1970 opt/enclave".to_owned(),
        "drwxr-xr-x 1 0 0 0 Jan 1 1970 opt/enclave/certs".to_owned(),
        format!("-rwxr-xr-x 1 0 0 {daemon} Jan 1 1970 teemarkd"),
    ];
    assert_eq!(listing(&place, "ramdisk-1"), expected);

    place.shell("mkdir root; cd root; for i in 0 1; do xz -dc <../parts/ramdisk-$i | cpio -i --quiet; done");
    for (inside, given) in [
        ("init", "init"),
        ("teemarkd", "teemarkd"),
        ("allowed_endpoints.yaml", "list.yaml"),
        ("etc/teemark.env", "env"),
    ] {
        assert!(place.read(&format!("root/{inside}")) == place.read(given), "{inside}");
    }
    assert!(place.read("parts/kernel") == place.read("bzImage"));
    assert_eq!(place.text("parts/cmdline"), "reboot=k panic=1 console=ttyS0 teemark.target=/teemarkd");
}

#[test]
fn the_kernel_can_unpack_the_ramdisks() {
    let place = Place::new();
    // Machine code, since the filter for x86 is for that.
    place.shell("head -c 1500000 /bin/busybox >>teemarkd");
    place.parts(&[]);
    for (ramdisk, filters) in [("ramdisk-0", "--lzma2=dict=4KiB"), ("ramdisk-1", "--x86 --lzma2=dict=1536KiB")] {
        let list = place.shell(&format!("xz --robot -lvv parts/{ramdisk}"));
        let of = |kind: &str| list.lines().filter(|l| l.starts_with(kind)).map(|l| l.split('\t').collect()).collect();
        let (streams, blocks): (Vec<Vec<&str>>, Vec<Vec<&str>>) = (of("stream\t"), of("block\t"));
        assert_eq!((streams.len(), blocks.len()), (1, 1), "{list}");
        // xz(1), "Robot mode": the check's name is column 9 of a stream, the filters are column 16 of a block.
        assert_eq!(streams[0][8], "CRC32", "{list}");
        assert_eq!(blocks[0][15], filters, "{list}");
        assert_eq!(place.read(&format!("parts/{ramdisk}")).len() % 4, 0);
    }
}

#[test]
fn an_image_for_aarch64_says_so_and_has_ramdisks_and_a_command_line_for_it() {
    let place = Place::new();
    place.write("bzImage", aarch64_kernel());
    place.write("init", for_aarch64(program(1)));
    // Calls of one function from many places, aligned and in the encoding of aarch64 (BL): the filter makes them equal.
    let calls = (0..50_000u32).map(|i| if i % 2 == 0 { 0x9400_0000 | (400_000 - i) } else { i ^ 0xd503_201f });
    place.write("teemarkd", for_aarch64([program(4), calls.flat_map(u32::to_le_bytes).collect()].concat()));
    place.parts(&[]);
    // Bytes 6 and 7 are the flags, of which the lowest says aarch64 (the EIF specification).
    assert_eq!(place.read("out/teemark.eif")[4..8], [0, 4, 0, 1]);
    assert_eq!(place.text("parts/cmdline"), "panic=1 console=ttyS0 teemark.target=/teemarkd");
    // Debian's xz is older than the filter, and shows its number (the .xz file format, section 5.3.2).
    let list = place.shell("xz --robot -lvv parts/ramdisk-1 || true");
    assert!(list.contains("0x0A") || list.contains("arm64"), "{list}");
    let json = place.json("out/teemark.json");
    assert_eq!((&json["arch"], &json["kernel_version"]), (&"aarch64".into(), &"6.12.1-test".into()));
    // It is measured like any other.
    let described: serde_json::Value =
        serde_json::from_slice(&succeeds(place.run(&["describe", "out/teemark.eif"])).stdout).unwrap();
    assert_eq!(json["pcrs"]["PCR0"], described["Measurements"]["PCR0"]);
}

#[test]
fn ramdisks_are_gzip_where_that_is_asked_for_and_hold_the_same() {
    let place = Place::new();
    place.parts(&[]);
    place.shell("for i in 0 1; do xz -dc <parts/ramdisk-$i >by-xz-$i; done");
    place.parts(&["--compression", "gzip"]);
    // gzip reports the zeros behind the archive, which the kernel skips.
    place
        .shell("for i in 0 1; do gzip -dcq <parts/ramdisk-$i >by-gzip-$i || [ $? = 2 ]; cmp by-xz-$i by-gzip-$i; done");
    assert_eq!(place.read("parts/ramdisk-1").len() % 4, 0);
}

#[test]
fn a_kernel_without_the_secure_module_gets_it_in_the_first_ramdisk() {
    let place = Place::new();
    place.write("nsm.ko", "a module");
    place.parts(&["--module", "nsm.ko"]);
    let line = "-rw-r--r-- 1 0 0 8 Jan 1 1970 nsm.ko";
    assert!(listing(&place, "ramdisk-0").iter().any(|entry| entry == line));
    assert_eq!(place.json("out/teemark.json")["parts"]["nsm.ko"]["bytes"], 8);
}

#[test]
fn a_debug_image_has_run_sh_a_shell_and_its_applets_and_starts_run_sh() {
    let place = Place::new();
    place.parts(&["--debug", "--launcher", "run.sh", "--shell", "/bin/busybox"]);
    let list = listing(&place, "ramdisk-1");
    let has = |begin: &str, end: &str| list.iter().any(|l| l.starts_with(begin) && l.ends_with(end));
    assert!(has("-rwxr-xr-x 1 0 0", " run.sh") && has("-rwxr-xr-x 1 0 0", " bin/busybox"), "{list:#?}");
    assert!(has("lrwxrwxrwx 1 0 0", " bin/sh -> busybox") && has("lrwxrwxrwx", " bin/ls -> busybox"), "{list:#?}");
    let line = "reboot=k panic=30 console=ttyS0 earlyprintk=serial,ttyS0,115200 ignore_loglevel teemark.target=/run.sh";
    assert_eq!(place.text("parts/cmdline"), line);
    let json = place.json("out/teemark.json");
    assert_eq!(json["debug"], true);
    assert_eq!(json["parts"]["launcher"]["bytes"], place.read("run.sh").len());
}

#[test]
fn two_builds_are_the_same_bytes() {
    let (one, other) = (Place::new(), Place::new());
    other.shell("touch -d 2001-01-01 *; chmod 600 *; mkdir -p out; echo old >out/teemark.eif");
    let more = ["--debug", "--launcher", "run.sh", "--shell", "/bin/busybox"];
    succeeds(one.build(&more));
    succeeds(other.build(&more));
    for file in ["out/teemark.eif", "out/teemark.pcrs", "out/teemark.json"] {
        assert!(one.read(file) == other.read(file), "{file}");
    }
}

#[test]
fn the_measurements_are_those_of_the_parts() {
    let place = Place::new();
    place.parts(&["--command-line", "panic=1 a=b"]);
    assert_eq!(place.text("parts/cmdline"), "panic=1 a=b");
    // A register that is extended once from zero: the hash of 48 zero bytes and the hash of what is measured.
    let measured =
        [("PCR0", "kernel cmdline ramdisk-0 ramdisk-1"), ("PCR1", "kernel cmdline ramdisk-0"), ("PCR2", "ramdisk-1")];
    let measure = |(pcr, parts)| {
        let inner = format!("cd parts; {{ head -c 48 /dev/zero; cat {parts} | openssl dgst -sha384 -binary; }}");
        format!("{} {pcr}\n", place.shell(&format!("{inner} | sha384sum | cut -c -96")).trim())
    };
    let expected: String = measured.map(measure).concat();
    assert_eq!(place.text("out/teemark.pcrs"), expected);
    let json = place.json("out/teemark.json");
    let described: serde_json::Value =
        serde_json::from_slice(&succeeds(place.run(&["describe", "out/teemark.eif"])).stdout).unwrap();
    for line in expected.lines() {
        let (value, name) = line.split_once(' ').unwrap();
        assert_eq!((&json["pcrs"][name], &described["Measurements"][name]), (&value.into(), &value.into()));
    }
    assert_eq!((&described["IsSigned"], &described["CheckCRC"]), (&false.into(), &true.into()));
}

#[test]
fn the_record_tells_size_and_hash_of_every_part() {
    let place = Place::new();
    place.parts(&["--name", "teemark"]);
    let json = place.json("out/teemark.json");
    let parts = [
        ("kernel", "bzImage"),
        ("init", "init"),
        ("teemarkd", "teemarkd"),
        ("endpoints", "list.yaml"),
        ("environment", "env"),
        ("ramdisk-0", "parts/ramdisk-0"),
        ("ramdisk-1", "parts/ramdisk-1"),
        ("eif", "out/teemark.eif"),
    ];
    for (part, file) in parts {
        let hash = place.shell(&format!("sha256sum <{file} | cut -c -64"));
        assert_eq!(json["parts"][part]["bytes"], place.read(file).len(), "{part}");
        assert_eq!(json["parts"][part]["sha256"], hash.trim(), "{part}");
    }
    assert_eq!(json["parts"].as_object().unwrap().len(), parts.len());
    assert_eq!(json["kernel_version"], "6.12.1-test");
    assert_eq!((&json["debug"], &json["signed"], &json["name"]), (&false.into(), &false.into(), &"teemark".into()));
}

#[test]
fn the_build_time_is_a_constant_or_what_source_date_epoch_says_and_is_not_measured() {
    let place = Place::new();
    let build = |epoch: Option<&str>, name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_teemark-image"));
        let files =
            "build --kernel bzImage --init init --daemon teemarkd --endpoints list.yaml --environment env --output";
        command.args(files.split(' ')).args([name]).current_dir(place.0.path()).env_remove("SOURCE_DATE_EPOCH");
        command.envs(epoch.map(|epoch| ("SOURCE_DATE_EPOCH", epoch))).output().unwrap()
    };
    let time = |folder: &str| {
        let output = succeeds(place.run(&["describe", &format!("{folder}/teemark.eif")]));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        json["Metadata"]["BuildTime"].as_str().unwrap().to_owned()
    };
    succeeds(build(None, "a"));
    succeeds(build(Some("1700000000"), "b"));
    assert_eq!((time("a"), time("b")), ("1970-01-01T00:00:00Z".into(), "2023-11-14T22:13:20Z".into()));
    assert_eq!(place.read("a/teemark.pcrs"), place.read("b/teemark.pcrs"));
    let refused = build(Some("yesterday"), "c");
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("SOURCE_DATE_EPOCH: \"yesterday\" is not a number of seconds"));
}
