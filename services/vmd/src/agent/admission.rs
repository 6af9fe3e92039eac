//! Who in the guest is its agent: the first that says hello in a boot, and from then on whoever has the token. Pure.
//!
//! Any process of the guest may call the host. Until the agent has its first answer it has started nothing that could
//! speak for it; from then on it proves itself by the token of that answer, which it alone was told.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the agent of a run is told with its first answer, and sessions open with.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; Self::LENGTH]);

impl Token {
    pub const LENGTH: usize = 32;

    /// A new one, which nobody can guess.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn random() -> Result<Self, TokenError> {
        let mut bytes = [0; Self::LENGTH];
        getrandom::fill(&mut bytes).map_err(TokenError)?;
        Ok(Self(bytes))
    }

    /// One that was made before, by a supervisor that handed over to this one.
    #[must_use]
    pub fn known(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// Whether `bytes` are this token; how long that takes does not tell how much of it is right.
    fn is(&self, bytes: &[u8]) -> bool {
        let differ = |differ, (a, b): (&u8, &u8)| differ | (a ^ b);
        bytes.len() == Self::LENGTH && self.0.iter().zip(bytes).fold(0, differ) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(_)")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a token for the agent: {0}")]
pub struct TokenError(getrandom::Error);

/// What a connection is to the agent that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the agent's.
    Own,
    /// There is no agent, or its connection is closed.
    Vacant,
    /// The agent has another.
    Other,
}

/// Why a call is not the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotGreeted,
    OtherConnection,
    /// A later hello without the token, or with a wrong one.
    NoToken,
}

/// A boot of the guest, as its agent tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    id: Option<String>,
    /// The agent has its first answer.
    answered: bool,
}

impl Boot {
    /// A boot whose agent had its first answer from another supervisor.
    #[must_use]
    pub fn known(id: String) -> Self {
        Self {
            id: Some(id),
            answered: true,
        }
    }

    /// The boot's id, once there was a hello.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Takes a hello. The connection that it came by is the agent's then.
    ///
    /// # Errors
    /// It is not the agent's.
    pub fn hello(
        &mut self,
        boot_id: &str,
        shown: &[u8],
        token: &Token,
        standing: Standing,
    ) -> Result<(), Refusal> {
        let is_known = self.id.as_deref() == Some(boot_id);
        if !shown.is_empty() {
            return if is_known && token.is(shown) {
                self.answered = true;
                Ok(())
            } else {
                Err(Refusal::NoToken)
            };
        }
        match (&self.id, standing) {
            (None, Standing::Vacant | Standing::Own) => {
                self.id = Some(boot_id.to_owned());
                Ok(())
            }
            // An agent that lost its answer.
            (Some(_), Standing::Own) if is_known => Ok(()),
            (Some(_), Standing::Vacant) if is_known && !self.answered => Ok(()),
            (None, Standing::Other) => Err(Refusal::OtherConnection),
            (Some(_), _) => Err(Refusal::NoToken),
        }
    }

    /// Takes any other call.
    ///
    /// # Errors
    /// It is not the agent's.
    pub fn call(&mut self, standing: Standing) -> Result<(), Refusal> {
        match standing {
            Standing::Own => {
                self.answered = true;
                Ok(())
            }
            Standing::Vacant => Err(Refusal::NotGreeted),
            Standing::Other => Err(Refusal::OtherConnection),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Refusal::*, Standing::*, *};

    const TOKEN: Token = Token([7; Token::LENGTH]);

    #[test]
    fn the_agent_of_a_boot_proves_itself_by_its_token() {
        let known = Boot::known("a".to_owned());
        let fresh = Boot {
            id: Some("a".to_owned()),
            answered: false,
        };
        let right: &[u8] = TOKEN.as_bytes();
        let wrong: &[u8] = &[8; Token::LENGTH];
        type Case<'a> = (&'a Boot, &'a str, &'a [u8], Standing, Result<(), Refusal>);
        let cases: [Case<'_>; 14] = [
            (&Boot::default(), "a", b"", Vacant, Ok(())),
            (&Boot::default(), "a", b"", Other, Err(OtherConnection)),
            // Nobody has a token before the first answer.
            (&Boot::default(), "a", right, Vacant, Err(NoToken)),
            (&fresh, "a", b"", Own, Ok(())),
            (&fresh, "a", b"", Vacant, Ok(())),
            (&fresh, "a", b"", Other, Err(NoToken)),
            (&fresh, "b", b"", Vacant, Err(NoToken)),
            (&known, "a", b"", Own, Ok(())),
            (&known, "a", b"", Vacant, Err(NoToken)),
            (&known, "b", b"", Vacant, Err(NoToken)),
            (&known, "a", right, Vacant, Ok(())),
            (&known, "a", right, Other, Ok(())),
            (&known, "a", wrong, Own, Err(NoToken)),
            (&known, "b", right, Vacant, Err(NoToken)),
        ];
        for (at, (boot, id, shown, standing, expected)) in cases.into_iter().enumerate() {
            let mut after = boot.clone();
            assert_eq!(after.hello(id, shown, &TOKEN, standing), expected, "{at}");
            if expected.is_err() {
                assert_eq!(after, *boot, "{at}");
            } else {
                assert_eq!(after.id(), Some(id), "{at}");
            }
        }
        assert!(!TOKEN.is(&right[..31]));
    }

    #[test]
    fn other_calls_are_the_agents_connections_alone() {
        let mut boot = Boot::default();
        assert_eq!(boot.call(Vacant), Err(NotGreeted));
        assert_eq!(boot.call(Other), Err(OtherConnection));
        boot.hello("a", b"", &TOKEN, Vacant).unwrap();
        assert_eq!(boot.call(Own), Ok(()));
        // It has its answer, then.
        assert_eq!(boot.hello("a", b"", &TOKEN, Vacant), Err(NoToken));
    }

    #[test]
    fn a_token_is_not_shown_and_no_two_are_alike() {
        let (one, other) = (Token::random().unwrap(), Token::random().unwrap());
        assert_ne!(one, other);
        assert_eq!(format!("{one:?}"), "Token(_)");
    }
}
