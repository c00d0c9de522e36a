//! No room for files. It is
//! told once and clearly, others serve, and all is well again when there is room.

use serde_json::Value;

use crate::common::System;
use crate::{echo, ends_well};

/// The secondary of slot 1 has died and there is no room for another; `room` makes some.
pub fn is_replaced_in_the_end(system: System, room: impl FnOnce()) {
    let principal = system.pid(0);
    let tried = |status: &Value| System::server(status, 1)["incarnation"].as_u64().unwrap();
    let before = tried(&system.status());
    system.until("more tries", |status| tried(status) > before + 2);
    for _ in 0..5 {
        echo(&system);
    }
    room();
    system.until("a replacement", |status| System::server(status, 1)["state"] == "ready");
    assert_eq!(system.pid(0), principal);
    ends_well(system);
}

/// A start without room for the pages: says so, and leaves nothing.
pub fn cannot_be_created(mut system: System) {
    assert_eq!(system.ended().code(), Some(73), "{}", system.log());
    let log = system.log();
    assert!(log.contains("cannot create /"), "{log}");
    assert!(log.lines().count() <= 2, "{log}");
    assert_eq!(system.files(), ["lock"]);
}
