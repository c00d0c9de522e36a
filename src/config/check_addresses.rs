//! Whether the addresses that a configuration asks for can be had together.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;

use crate::config::check::{Wrong, between, quoted, wrong};
use crate::config::listen::{covers_port, is_mapped};
use crate::config::{Address, Config, Listen};
use crate::os::rundir;

/// `sun_path` holds 108 bytes, the closing zero included (unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;
const MAX_ADDRESSES: usize = 64;

impl Config {
    pub(super) fn check_listen(&self) -> Result<(), Wrong> {
        self.check_addresses("listen", &self.listen)?;
        if self.listen.tcp().next().is_none() {
            let listed: Vec<String> = self.listen.addresses().iter().map(ToString::to_string).collect();
            let wanted =
                "a TCP address is wanted as well, such as \"127.0.0.1:2222\": secondaries have no other";
            return wrong("listen", format!("{listed:?}"), wanted);
        }
        Ok(())
    }

    pub(super) fn check_observe(&self) -> Result<(), Wrong> {
        let Some(observe) = &self.observe else {
            return Ok(());
        };
        self.check_addresses("observe", observe)?;
        for address in observe.addresses() {
            let clashes = |listened: &&Address| listened.clashes_with(address);
            if let Some(listened) = self.listen.addresses().iter().find(clashes) {
                let wanted = format!("clashes with {} in listen: choose another", quoted(listened));
                return wrong("observe", quoted(address), wanted);
            }
        }
        Ok(())
    }

    fn check_addresses(&self, key: &'static str, listen: &Listen) -> Result<(), Wrong> {
        let addresses = listen.addresses();
        between(&format!("the number of addresses in {key}"), addresses.len(), 1, MAX_ADDRESSES)?;
        for (index, address) in addresses.iter().enumerate() {
            if addresses[..index].contains(address) {
                return wrong(key, quoted(address), "is there twice");
            }
            match address {
                Address::Tcp(tcp) => check_tcp(key, listen, *tcp)?,
                Address::Unix(path) => self.check_socket_path(key, address, path)?,
            }
        }
        Ok(())
    }

    fn check_socket_path(&self, key: &'static str, address: &Address, path: &Path) -> Result<(), Wrong> {
        let bytes = path.as_os_str().as_encoded_bytes();
        if !path.is_absolute() || path.file_name().is_none() || bytes.contains(&0) {
            let wanted = format!("must be an absolute path, such as \"unix:/run/osps/{}\"", example(key));
            return wrong(key, format_args!("{:?}", address.to_string()), wanted);
        }
        if bytes.len() > MAX_SOCKET_PATH_BYTES {
            let wanted = format!(
                "its path is {} bytes long; a Unix socket allows {MAX_SOCKET_PATH_BYTES}",
                bytes.len()
            );
            return wrong(key, quoted(address), wanted);
        }
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let is_taken = name == "lock" || rundir::is_of_a_run(name);
        if is_taken && path.parent() == Some(&self.runtime_dir) {
            let wanted = format!(
                "is a file of osps itself in runtime_dir: choose another name, such as \"{}\"",
                example(key)
            );
            return wrong(key, quoted(address), wanted);
        }
        Ok(())
    }
}

/// What a Unix socket for that may be called.
fn example(key: &str) -> &'static str {
    if key == "listen" { "principal" } else { "observer" }
}

fn check_tcp(key: &'static str, listen: &Listen, address: SocketAddr) -> Result<(), Wrong> {
    if is_mapped(address) {
        let plain = SocketAddr::new(address.ip().to_canonical(), address.port());
        return wrong(key, quoted(&address), format!("is written \"{plain}\""));
    }
    match listen.tcp().find(|other| *other != address && covers_port(*other, address)) {
        None => Ok(()),
        Some(other) => wrong(key, quoted(&address), format!("clashes with \"{other}\", which covers it")),
    }
}
