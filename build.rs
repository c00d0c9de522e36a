//! Links GCC's unwinder into the programs, as an archive. Rust's standard library asks for it as a shared library
//! (`libgcc_s.so.1`), which every process of the tree would find, map and relocate at its start: 0.1 ms of the two that
//! a replacement takes, and 20 KiB. A linker that has the archive first has no need for the library.

use std::env;
use std::path::Path;
use std::process::Command;

const ARCHIVE: &str = "libgcc_eh.a";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_set = |variable: &str, value: &str| env::var(variable).is_ok_and(|set| set == value);
    let is_gnu = is_set("CARGO_CFG_TARGET_OS", "linux") && is_set("CARGO_CFG_TARGET_ENV", "gnu");
    // Another machine's archives are not where this one's compiler says.
    if is_gnu && env::var("HOST") == env::var("TARGET") && has_archive() {
        println!("cargo::rustc-link-lib=dylib=gcc_eh");
    }
}

/// Whether the C compiler, by which Rust links, knows where the archive is; without it the shared library does.
fn has_archive() -> bool {
    let output = Command::new("cc").arg(format!("-print-file-name={ARCHIVE}")).output();
    // The bare name comes back where there is none.
    output.is_ok_and(|output| {
        std::str::from_utf8(&output.stdout).is_ok_and(|path| Path::new(path.trim_end()).is_absolute())
    })
}
