//! Handlers that a program brings with it, by name.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use thiserror::Error as ThisError;

use crate::config::{self, Config, Request};
use crate::handler::{Client, Session};

/// Why a handler cannot be made, in words of its own.
pub type Error = Box<dyn std::error::Error>;

/// What a handler is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// The request type that it will serve.
    pub request: String,
    /// The secondary in which it will serve, from 1. Zero: it is only tried, by `check` or before a
    /// start, to find out whether it can be made.
    pub slot: u16,
    /// `settings` of the request.
    pub settings: toml::Table,
}

impl Setup {
    /// The settings as a type of one's own.
    ///
    /// # Errors
    /// What does not fit.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Ok(self.settings.clone().try_into()?)
    }
}

/// Opens sessions.
pub(super) type Opener = Box<dyn Fn(Client) -> Box<dyn Session>>;
type Maker = Box<dyn Fn(Setup) -> Result<Opener, Error>>;

/// A handler cannot be made as it is configured.
#[derive(Debug, ThisError)]
#[error("request \"{request}\": handler \"{handler}\": {why}")]
pub struct MakerError {
    /// The request type.
    pub request: String,
    /// The handler.
    pub handler: String,
    /// Why, on one line.
    pub why: String,
}

/// The handlers that a program has registered.
#[derive(Default)]
pub struct Registry {
    makers: BTreeMap<String, Maker>,
    /// Names that cannot be registered.
    wrong: Vec<String>,
}

impl Registry {
    /// Registers a handler under a name. See [`Server::handler`](crate::Server::handler).
    pub fn add<M, O, S>(&mut self, name: &str, maker: M)
    where
        M: Fn(Setup) -> Result<O, Error> + 'static,
        O: Fn(Client) -> S + 'static,
        S: Session + 'static,
    {
        let is_built_in = config::Handler::BUILT_IN.iter().any(|known| known.name() == name);
        let maker: Maker = Box::new(move |setup| {
            let open = maker(setup)?;
            Ok(Box::new(move |client| Box::new(open(client))))
        });
        if is_built_in || name.is_empty() || self.makers.insert(name.to_owned(), maker).is_some() {
            self.wrong.push(name.to_owned());
        }
    }

    /// The names under which handlers are registered.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.makers.keys().map(String::as_str).collect()
    }

    /// A name that is registered twice, is that of a built-in handler, or is empty.
    #[must_use]
    pub fn wrong_name(&self) -> Option<&str> {
        self.wrong.first().map(String::as_str)
    }

    /// Makes each registered handler of a configuration once, to see whether it can be made, and whether it has no
    /// keys of others: who has read the configuration may not have known which handlers there are.
    ///
    /// # Errors
    /// The first [`MakerError`].
    pub fn check(&self, config: &Config) -> Result<(), MakerError> {
        for request in &config.request {
            if let config::Handler::Registered(name) = &request.handler {
                drop(self.make(name, request, 0)?);
                if let Some(key) = request.useless_to_registered() {
                    return Err(failed(name, request, &format!("has no use for {key}")));
                }
            }
        }
        Ok(())
    }

    /// Makes the handler of a request.
    pub(super) fn make(&self, name: &str, request: &Request, slot: u16) -> Result<Opener, MakerError> {
        let failed = |why: &str| failed(name, request, why);
        let maker = self.makers.get(name);
        let maker = maker.ok_or_else(|| failed(&config::Handler::unknown(&self.names())))?;
        let setup = Setup { request: request.name.clone(), slot, settings: request.settings.clone() };
        maker(setup).map_err(|error| failed(&error.to_string()))
    }
}

fn failed(handler: &str, request: &Request, why: &str) -> MakerError {
    MakerError {
        request: request.name.clone(),
        handler: handler.to_owned(),
        why: config::printable(&why.trim().replace('\n', " ")),
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.makers.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::{Turn, Wishes};
    use std::net::Ipv4Addr;

    struct Says(String);

    impl Session for Says {
        fn on_input(&mut self, _: &[u8], turn: &mut Turn<'_>) {
            turn.answer(&self.0);
        }
    }

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        word: String,
    }

    fn registry() -> Registry {
        let mut registry = Registry::default();
        registry.add("says", |setup| {
            let Settings { word } = setup.read()?;
            if word.is_empty() {
                return Err("word must not be\nempty".into());
            }
            Ok(move |client: Client| Says(format!("{word} {} {}", client.job, setup.slot)))
        });
        registry
    }

    fn request(settings: &str) -> Request {
        Request {
            settings: settings.parse().unwrap(),
            ..Request::new("work", config::Handler::Registered("says".to_owned()))
        }
    }

    #[test]
    fn a_maker_gets_the_settings_and_opens_sessions() {
        let open = registry().make("says", &request("word = \"hi\""), 3).unwrap();
        let mut session = open(Client { address: Ipv4Addr::LOCALHOST.into(), job: 7 });
        let (mut output, mut wishes) = (Vec::new(), Wishes::default());
        let now = crate::core::moment::Moment::default();
        session.on_input(b"", &mut Turn::new(now, &mut output, &mut wishes));
        assert_eq!(output, b"hi 7 3");
    }

    #[test]
    fn what_a_maker_says_is_one_line_with_the_request_and_the_handler() {
        let error = |settings: &str| {
            let request = vec![request(settings)];
            registry().check(&Config { request, ..Config::default() }).unwrap_err().to_string()
        };
        assert_eq!(error("word = \"\""), "request \"work\": handler \"says\": word must not be empty");
        for (settings, part) in [("", "word"), ("words = 1", "words"), ("word = 5", "string")] {
            let error = error(settings);
            assert!(error.contains(part) && !error.contains(char::is_control), "{settings}: {error:?}");
        }
        let missing = Registry::default().make("says", &request(""), 1).err().unwrap().to_string();
        assert!(missing.ends_with("there is no such handler; known: delay, echo, block, exec"), "{missing}");
        let delay = Some(std::time::Duration::from_secs(1));
        let delayed =
            Config { request: vec![Request { delay, ..request("word = \"hi\"") }], ..Config::default() };
        let useless = registry().check(&delayed).unwrap_err().to_string();
        assert_eq!(useless, "request \"work\": handler \"says\": has no use for delay");
    }

    #[test]
    fn names_are_unique() {
        let mut registry = registry();
        assert_eq!((registry.names(), registry.wrong_name()), (vec!["says"], None));
        registry.add("echo", |_| Ok(|_| Says(String::new())));
        assert_eq!(registry.wrong_name(), Some("echo"));
        let mut registry = self::registry();
        registry.add("says", |_| Ok(|_| Says(String::new())));
        assert_eq!(registry.wrong_name(), Some("says"));
    }
}
