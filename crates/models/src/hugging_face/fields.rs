//! Reading the fields of a `config.json` so that none goes unnoticed.

use super::config::ConfigError;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// An object whose fields are taken one by one; what nobody took is refused at the end. `null`
/// counts as absent, as in transformers.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// What stands before a field's name in messages.
    path: String,
    taken: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Map<String, Value>, path: &str) -> Self {
        Self {
            object,
            path: path.to_owned(),
            taken: RefCell::default(),
        }
    }

    /// The value of a field as it stands there, `null` included.
    pub(super) fn raw(&self, name: &str) -> Option<&'a Value> {
        self.taken.borrow_mut().insert(name.to_owned());
        self.object.get(name)
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.raw(name).filter(|value| !value.is_null())
    }

    /// A count of at least 1 that fits 32 bits.
    pub(super) fn count(&self, name: &str) -> Result<u32, ConfigError> {
        let missing = || ConfigError::Missing {
            field: self.name(name),
        };
        self.count_or_none(name)?.ok_or_else(missing)
    }

    pub(super) fn count_or_none(&self, name: &str) -> Result<Option<u32>, ConfigError> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        match count.filter(|&count| count > 0) {
            Some(count) => Ok(Some(count)),
            None => Err(self.unsupported(name, value, "a whole number of at least 1")),
        }
    }

    /// The id of a token.
    pub(super) fn token(&self, name: &str) -> Result<u32, ConfigError> {
        let Some(value) = self.value(name) else {
            return Err(ConfigError::Missing {
                field: self.name(name),
            });
        };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.unsupported(name, value, "the id of a token"))
    }

    /// A finite number.
    pub(super) fn number_or(&self, name: &str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.number_or_none(name)?.unwrap_or(default))
    }

    pub(super) fn number(&self, name: &str) -> Result<f64, ConfigError> {
        let missing = || ConfigError::Missing {
            field: self.name(name),
        };
        self.number_or_none(name)?.ok_or_else(missing)
    }

    pub(super) fn number_or_none(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.unsupported(name, value, "a number")),
        }
    }

    /// A number above 0.
    pub(super) fn positive_or(&self, name: &str, default: f64) -> Result<f64, ConfigError> {
        let number = self.number_or(name, default)?;
        if number > 0.0 {
            return Ok(number);
        }
        Err(self.unsupported(name, &number.into(), "a number above 0"))
    }

    /// A probability in `[0, 1)`.
    pub(super) fn probability_or(&self, name: &str, default: f64) -> Result<f64, ConfigError> {
        let number = self.number_or(name, default)?;
        if (0.0..1.0).contains(&number) {
            return Ok(number);
        }
        Err(self.unsupported(name, &number.into(), "at least 0 and below 1"))
    }

    pub(super) fn flag_or(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.unsupported(name, value, "true or false")),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.unsupported(name, value, "a text")),
        }
    }

    /// The fields of an object in a field.
    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(object)) => {
                Ok(Some(Fields::new(object, &format!("{}.", self.name(name)))))
            }
            Some(value) => Err(self.unsupported(name, value, "an object")),
        }
    }

    /// A field of which only one value is implemented; absent it has that value.
    pub(super) fn only(&self, name: &str, supported: &Value) -> Result<(), ConfigError> {
        match self.value(name) {
            None => Ok(()),
            Some(value) if value == supported => Ok(()),
            Some(value) if value.as_f64().is_some() && value.as_f64() == supported.as_f64() => {
                Ok(())
            }
            Some(value) => Err(self.unsupported(name, value, &supported.to_string())),
        }
    }

    pub(super) fn unsupported(&self, name: &str, got: &Value, supported: &str) -> ConfigError {
        ConfigError::Unsupported {
            field: self.name(name),
            got: got.to_string(),
            supported: supported.to_owned(),
        }
    }

    /// Fails if there is a field that nobody took and that is not among those without effect.
    pub(super) fn finish(&self, without_effect: &[&str]) -> Result<(), ConfigError> {
        let taken = self.taken.borrow();
        let unknown = self.object.iter().find(|(name, value)| {
            !taken.contains(*name) && !without_effect.contains(&&name[..]) && !value.is_null()
        });
        match unknown {
            None => Ok(()),
            Some((name, value)) => Err(ConfigError::Unknown {
                field: self.name(name),
                got: value.to_string(),
            }),
        }
    }

    /// The fields that were taken, with their values.
    pub(super) fn taken(&self) -> Map<String, Value> {
        let taken = self.taken.borrow();
        (self.object.iter())
            .filter(|(name, _)| taken.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }
}
