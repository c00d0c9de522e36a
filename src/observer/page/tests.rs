//! What the page shows, and what it may do.

use sha2::{Digest, Sha256};

use super::*;
use crate::observer::example;
use crate::status::{EndsOf, Server, ServerState};

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

/// A status in which all that comes from outside is markup.
fn hostile() -> Status {
    let evil = "<script>alert('1')</script>\"&";
    let mut status = example::status();
    status.version = evil.to_owned();
    status.listen.fill(evil.to_owned());
    status.requests =
        status.requests.into_iter().map(|(name, ends)| (format!("{evil}{name}"), ends)).collect();
    status.servers[1].ports = [(format!("{evil}echo"), 1)].into();
    let death = &mut status.obituaries[0];
    (death.cause, death.wchan) = (evil.to_owned(), Some(evil.to_owned()));
    status
}

#[test]
fn what_comes_from_outside_is_text() {
    let (plain, hostile) = (example::status(), hostile());
    let pages = [&plain, &hostile].map(|status| page(NOW, Ok(status), &History::default()));
    let tags = pages.each_ref().map(|page| page.matches('<').count());
    assert_eq!(tags[0], tags[1]);
    assert!(pages[1].contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;echo"));
    let reason = page(NOW, Err("<b>gone</b>"), &History::default());
    assert!(reason.contains("<h1>&lt;b&gt;gone&lt;/b&gt;.</h1>") && reason.contains("<title>&lt;b&gt;gone"));
}

#[test]
fn an_event_brings_what_the_page_shows() {
    let (status, mut history) = (example::status(), History::default());
    history.handle_status(NOW - Duration::from_secs(2), &status);
    history.handle_status(NOW - Duration::from_secs(1), &status);
    let page = page(NOW, Ok(&status), &history);
    let event: serde_json::Value = serde_json::from_str(&event(NOW, Ok(&status), &history)).unwrap();
    let pieces = event["pieces"].as_object().unwrap();
    assert_eq!(pieces.len(), 8);
    for (id, html) in pieces {
        let element = page.split_once(&format!("id=\"{id}\"")).unwrap().1.split_once('>').unwrap().1;
        assert!(element.starts_with(html.as_str().unwrap()), "{id}");
    }
    assert_eq!(event["title"], "Both secondaries serve · OSPS");
    assert_eq!(
        (event["level"].as_str(), &event["samples"]),
        (Some("good"), &serde_json::json!([[1.0, 0.0, 0.0, null]]))
    );
}

#[test]
fn without_a_status_the_page_says_why() {
    let page = page(NOW, Err("no osps is running in /run/osps"), &History::default());
    assert!(
        page.contains("<h1>no osps is running in /run/osps.</h1>") && page.contains("<body class=\"bad\">")
    );
    assert!(!page.contains("<table") && !page.contains("<figure"));
}

#[test]
fn the_page_does_not_grow_without_bounds() {
    let mut status = example::status();
    for number in 0..100 {
        status.requests.insert(format!("type{number}"), EndsOf { done: 0, failed: 0, expired: 0 });
    }
    for slot in 3..1000 {
        status.servers.push(Server { slot, state: ServerState::Suspect, ..status.servers[1].clone() });
    }
    let obituaries = (0..64).map(|_| status.obituaries[0].clone());
    status.obituaries = obituaries.collect();
    let mut history = History::default();
    for second in (0..400).rev() {
        history.handle_status(NOW - Duration::from_secs(second), &status);
    }
    let page = page(NOW, Ok(&status), &history);
    assert!(page.len() < 400_000, "{} bytes", page.len());
    for left_out in ["… and 70 that had fewer jobs", "… and 901 more", "… and 52 before them"] {
        assert!(page.contains(left_out), "{left_out}");
    }
}
