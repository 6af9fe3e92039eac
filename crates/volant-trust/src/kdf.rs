//! How a password becomes the key stream that hides a secret key: scrypt, with libsodium's two limits.

use scrypt::Params;

/// libsodium's `OPSLIMIT_SENSITIVE`, which minisign uses.
pub(crate) const OPS: u64 = 33_554_432;
/// libsodium's `MEMLIMIT_SENSITIVE`, which minisign uses: 1 GiB.
pub(crate) const MEMORY: u64 = 1 << 30;
/// scrypt's `r`; libsodium has no other.
const R: u32 = 8;

/// scrypt's parameters for a key file's limits, as libsodium chooses them; `None` when they are larger than
/// those of any minisign: more memory, or minutes of work.
pub(crate) fn params(ops: u64, memory: u64) -> Option<Params> {
    if memory > MEMORY || ops > OPS {
        return None;
    }
    let ops = ops.max(32_768);
    let (max_n, p) = if ops < memory / 32 {
        (ops / (u64::from(R) * 4), Some(1))
    } else {
        (memory / (u64::from(R) * 128), None)
    };
    let log_n = (1..63_u8).find(|log_n| 1 << log_n > max_n / 2)?;
    let p = p.unwrap_or((ops / 4) / (1_u64 << log_n) / u64::from(R));
    // Little memory with much work: a p that would be slow for long.
    let p = u32::try_from(p)
        .ok()
        .filter(|p| (1..=1 << 16).contains(p))?;
    Params::new(log_n, R, p).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_choose_as_libsodium_does() {
        // libsodium's own pairs: SENSITIVE and INTERACTIVE, and what minisign falls back to with less memory.
        let cases = [
            (OPS, MEMORY, (20, 8, 1)),
            (524_288, 16_777_216, (14, 8, 1)),
            (OPS / 2, MEMORY / 2, (19, 8, 1)),
            (OPS, MEMORY / 2, (19, 8, 2)),
            (1, 1 << 20, (10, 8, 1)),
        ];
        for (ops, memory, expected) in cases {
            let params = params(ops, memory).unwrap();
            let chosen = (params.log_n(), params.r(), params.p());
            assert_eq!(chosen, expected, "{ops} {memory}");
        }
    }

    #[test]
    fn limits_that_would_never_end_are_refused() {
        for (ops, memory) in [
            (u64::MAX, MEMORY),
            (OPS, u64::MAX),
            (OPS + 1, MEMORY),
            (OPS, 0),
        ] {
            assert!(params(ops, memory).is_none(), "{ops} {memory}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_limits_panic(ops: u64, memory: u64, shift in 0..64_u32) {
            let _ = params(ops >> shift, memory >> shift);
        }
    }
}
