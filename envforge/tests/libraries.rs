//! What the program takes from the machine that it runs on: glibc and libgcc_s, and no other shared library.

use std::process::Command;

/// Beside the loader itself. Before glibc 2.34 more files were parts of it.
const TAKEN: [&str; 3] = ["libc.so.6", "libgcc_s.so.1", "libm.so.6"];

fn ldd(arguments: &[&str]) -> String {
    let output = Command::new("ldd").args(arguments).output().expect("glibc brings `ldd`");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("it tells text")
}

/// `2.34` as numbers.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

#[test]
fn the_program_takes_glibc_and_libgcc_s_from_the_machine_and_no_other_library() {
    let program = env!("CARGO_BIN_EXE_envforge");
    let told = ldd(&["-v", program]);
    let (libraries, versions) = told.split_once("Version information:").expect("libraries, then versions");
    let names = libraries.lines().filter_map(|line| line.split_whitespace().next()?.rsplit('/').next());
    let mut libraries: Vec<_> =
        names.filter(|name| !name.starts_with("ld-linux") && !name.starts_with("linux-vdso")).collect();
    libraries.sort_unstable();
    assert_eq!(libraries, TAKEN, "{told}");

    // What the program asks for, and then what these libraries ask of each other.
    let own =
        versions.lines().skip_while(|line| !line.contains(program)).skip(1).take_while(|line| !line.ends_with(':'));
    let needed = own.filter_map(|line| version(line.split_once("(GLIBC_")?.1.split(')').next()?)).max();
    let hosts = include_str!("../../docs/hosts.md");
    let said = hosts.split_once("of glibc ").and_then(|(_, rest)| version(rest.split(' ').next()?));
    // Linked against a later glibc than Debian 12's it may need a later one.
    let here = ldd(&["--version"]).lines().next().and_then(|line| version(line.split(' ').next_back()?));
    assert!(
        needed <= said || here > Some((2, 36)),
        "needs {needed:?}, docs/hosts.md says {said:?}, linked with {here:?}"
    );
    println!("needs glibc {needed:?}, linked with {here:?}");
}
