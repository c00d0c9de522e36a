//! What the guide for operators says: its configurations can be used.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

/// The blocks of TOML in a document.
fn configurations(text: &str) -> Vec<&str> {
    let blocks = text.split("\n```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix("toml\n")).collect()
}

#[test]
fn the_configurations_of_the_guide_can_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("osps.toml");
    for name in ["operations.md", "proxies.md", "observer.md"] {
        let text = document(name);
        let configurations = configurations(&text);
        assert!(!configurations.is_empty(), "{name} has none");
        for configuration in configurations {
            fs::write(&file, configuration).unwrap();
            let output = common::osps().arg("check").arg("--config").arg(&file).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {said}\n{configuration}");
        }
    }
}
