//! Sockets that a service manager has passed, as a configuration sees them: they take the place of addresses, or
//! have to be among them.

use std::path::Path;

use crate::config::{Address, Config, ConfigError, Listen, Registered, printable};

/// Where sockets listen that were passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassedAddresses {
    /// Those of which nothing is said: for clients, unless they are in `observe`.
    pub listen: Vec<Address>,
    /// Those for the observer.
    pub observe: Vec<Address>,
}

impl PassedAddresses {
    /// The same, each for what that configuration has it for.
    #[must_use]
    pub fn as_in(mut self, config: &Config) -> Self {
        let (observe, listen) = config.tell_apart(&self);
        self.observe.extend(observe);
        Self { listen, ..self }
    }
}

impl Config {
    /// As [`Config::load_with`], or as [`Config::load_for_tools`] where nothing is to be served, where sockets of these
    /// addresses were passed: they are `listen` and `observe`, unless the file has such a key, among whose addresses
    /// they have to be then.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load_passed(
        file: Option<&Path>,
        runtime_dir: Option<&Path>,
        to_serve_with: Option<Registered<'_>>,
        passed: &PassedAddresses,
    ) -> Result<Self, ConfigError> {
        Self::read(file, runtime_dir, to_serve_with, passed)
    }

    pub(super) fn adopt(&mut self, source_name: &str, passed: &PassedAddresses) -> Result<(), ConfigError> {
        let (_, listen) = self.tell_apart(passed);
        adopt(source_name, "listen", &mut self.listen, &listen)?;
        match &mut self.observe {
            Some(observe) => adopt(source_name, "observe", observe, &passed.observe),
            None if passed.observe.is_empty() => Ok(()),
            None => {
                self.observe = Some(Listen::passed(&passed.observe));
                Ok(())
            }
        }
    }

    /// Of those of which nothing is said: which are in `observe`, and which are not.
    fn tell_apart(&self, passed: &PassedAddresses) -> (Vec<Address>, Vec<Address>) {
        passed.listen.iter().cloned().partition(|address| self.observes(address))
    }

    /// Whether the observer listens there.
    #[must_use]
    pub fn observes(&self, address: &Address) -> bool {
        self.observe.as_ref().is_some_and(|observe| observe.addresses().contains(address))
    }
}

fn adopt(source_name: &str, key: &str, listen: &mut Listen, passed: &[Address]) -> Result<(), ConfigError> {
    listen.adopt(passed).map_err(|address| {
        let listed: Vec<String> = listen.addresses().iter().map(ToString::to_string).collect();
        ConfigError::Value {
            source_name: source_name.to_owned(),
            key: key.to_owned(),
            value: printable(&format!("{listed:?}")),
            wanted: printable(&format!(
                "the service manager has passed a socket of {address}, which is not among them: add \
                 \"{address}\", or leave {key} out, which is what is passed then"
            )),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: [&str; 3] = ["127.0.0.1:7", "unix:/x", "127.0.0.1:9"];

    fn addresses(texts: &[&str]) -> Vec<Address> {
        let config = format!("listen = {texts:?}");
        toml::from_str::<Config>(&config).unwrap().listen.addresses().to_vec()
    }

    /// What the file makes of sockets for clients, and of those for the observer.
    fn adopted(file: &str, listen: &[&str], observe: &[&str]) -> Result<Config, String> {
        let mut config: Config = toml::from_str(file).unwrap();
        let passed = PassedAddresses { listen: addresses(listen), observe: addresses(observe) };
        config.adopt("file", &passed).map(|()| config).map_err(|error| error.to_string())
    }

    #[test]
    fn they_are_the_addresses_where_the_file_has_none() {
        let config = adopted("", &PASSED[..2], &PASSED[2..]).unwrap();
        assert_eq!(config.listen.addresses(), addresses(&PASSED[..2]));
        assert_eq!(config.observe.unwrap().addresses(), addresses(&PASSED[2..]));
        assert_eq!(adopted("", &[], &[]).unwrap(), toml::from_str("").unwrap());
    }

    #[test]
    fn they_have_to_be_among_those_of_the_file() {
        let file = "listen = [\"unix:/x\", \"127.0.0.1:8\", \"127.0.0.1:7\"]\nobserve = \"127.0.0.1:9\"";
        let config = adopted(file, &PASSED[..2], &PASSED[2..]).unwrap();
        assert_eq!(config, toml::from_str(file).unwrap());
        for (file, key) in [
            ("listen = \"127.0.0.1:7\"", "listen = [\"127.0.0.1:7\"]: "),
            ("observe = \"127.0.0.1:8\"", "observe = [\"127.0.0.1:8\"]: "),
            ("listen = [\"unix:/x\", \"127.0.0.1:0\"]", "127.0.0.1:7, which is not among them"),
        ] {
            let why = adopted(file, &PASSED[..2], &PASSED[2..]).unwrap_err();
            assert!(why.contains(key), "{why}");
        }
    }

    #[test]
    fn one_that_is_in_observe_needs_no_name_and_stays_what_it_is() {
        let file = "observe = \"127.0.0.1:9\"";
        let config = adopted(file, &PASSED, &[]).unwrap();
        assert_eq!(config.listen.addresses(), addresses(&PASSED[..2]));
        let passed = PassedAddresses { listen: addresses(&PASSED), observe: Vec::new() }.as_in(&config);
        let apart = PassedAddresses { listen: addresses(&PASSED[..2]), observe: addresses(&PASSED[2..]) };
        assert_eq!(passed, apart);
    }
}
