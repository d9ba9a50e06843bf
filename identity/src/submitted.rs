//! A secret as a client submits it in a request body.
//!
//! Not here: storing or comparing it. Domain's `Secret` deliberately knows no serialization; this is the one way in.

use envforge_domain::secret::Secret;
use serde::{Deserialize, Deserializer};

/// A password or token of a request. Can be read from JSON and never written, shown or logged.
#[derive(Clone)]
pub struct SubmittedSecret(Secret);

impl SubmittedSecret {
    pub fn into_secret(self) -> Secret {
        self.0
    }
}

impl<'de> Deserialize<'de> for SubmittedSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl serde::de::Visitor<'_> for Text {
            type Value = SubmittedSecret;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<SubmittedSecret, E> {
                Ok(SubmittedSecret(Secret::new(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<SubmittedSecret, E> {
                Ok(SubmittedSecret(Secret::new(text)))
            }

            // The default answers repeat the offending value in the error; a secret must not be repeated.
            fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<SubmittedSecret, E> {
                Err(E::custom("expected a string, found a number"))
            }

            fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<SubmittedSecret, E> {
                Err(E::custom("expected a string, found a number"))
            }

            fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<SubmittedSecret, E> {
                Err(E::custom("expected a string, found a number"))
            }
        }

        // Not `deserialize_string`: serde_json then writes the error itself, with the value in it.
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_secret_of_the_wrong_type_is_not_repeated_in_the_error() {
        for body in ["271828182845", "-271828182845", "2718281828.45"] {
            let Err(error) = serde_json::from_str::<SubmittedSecret>(body) else { panic!("{body} was accepted") };
            assert!(!error.to_string().contains("27182818"), "{error}");
        }
    }

    #[test]
    fn a_string_is_taken_as_it_is() {
        let secret: SubmittedSecret = serde_json::from_str(r#""a \"quoted\" one""#).unwrap();
        assert!(secret.into_secret().matches("a \"quoted\" one"));
    }
}
