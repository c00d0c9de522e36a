//! What the guide for operators says: its configurations can be used, its alerts are explained and tested.
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

#[test]
fn each_alert_is_explained_and_tried() {
    let (rules, tests, guide) =
        (document("alerts.yml"), document("alerts_test.yml"), document("operations.md"));
    let alerts: Vec<&str> =
        rules.lines().filter_map(|line| line.trim_start().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        assert!(guide.contains(&format!("| `{alert}` |")), "docs/operations.md does not explain {alert}");
        let tried = [format!("alertname: {alert}\n"), format!("alertname: {alert},")];
        assert!(tried.iter().any(|test| tests.contains(test)), "docs/alerts_test.yml does not try {alert}");
    }
}
