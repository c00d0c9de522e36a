//! What the page shows, and what it may do.

use sha2::{Digest, Sha256};

use super::*;
use crate::observer::example;

const NOW: Moment = Moment::from_nanos(1_000_000_000_000);

/// As a policy names a script or a style (Content Security Policy Level 3, section 2.3.1).
fn hash(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut base64 = String::from("'sha256-");
    for three in Sha256::digest(text).chunks(3) {
        let byte = |index: usize| u32::from(three.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) as usize % 64;
            base64.push(if digit <= three.len() { char::from(DIGITS[value]) } else { '=' });
        }
    }
    base64 + "'"
}

#[test]
fn the_policy_names_the_style_and_the_script_of_the_page() {
    for (directive, text) in [("style-src", STYLE), ("script-src", SCRIPT)] {
        let expected = format!("{directive} {};", hash(text));
        assert!(POLICY.contains(&expected), "page.rs must say: {expected}");
    }
    assert_eq!(hash(""), "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='");
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let page = page(NOW, Ok(&example::status()), &History::default());
    for (at, _) in page.match_indices("http") {
        let around = &page[at.saturating_sub(20)..(at + 40).min(page.len())];
        let harmless = ["http-equiv", "xmlns='http://www.w3.org/2000/svg'"];
        assert!(harmless.iter().any(|harmless| around.contains(harmless)), "{around}");
    }
    for word in [" src=", "url(", "@import", " style=\"", "{{"] {
        assert!(!page.contains(word), "{word}");
    }
}
