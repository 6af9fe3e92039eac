//! The numbers of tar headers.

/// A number in octal digits, or in base 256 as GNU writes large and negative ones.
pub(super) fn field(bytes: &[u8]) -> Option<i128> {
    match bytes.first()? {
        first if first & 0x80 != 0 => {
            let negative = first & 0x40 != 0;
            let (start, first) = if negative {
                (-1, *first)
            } else {
                (0, first & 0x7f)
            };
            // A field has at most twelve bytes, and so at most 96 bits.
            let rest = bytes.get(1..12).unwrap_or(&bytes[1..]);
            Some(
                rest.iter()
                    .fold((start << 8) | i128::from(first), |value, byte| {
                        (value << 8) | i128::from(*byte)
                    }),
            )
        }
        _ => octal(bytes),
    }
}

fn octal(bytes: &[u8]) -> Option<i128> {
    let start = bytes.iter().position(|byte| !matches!(byte, b' ' | 0));
    let Some(start) = start else {
        return Some(0);
    };
    let text = bytes[start..].split(|byte| *byte == 0).next()?;
    text.trim_ascii_end()
        .iter()
        .try_fold(0, |value: i128, digit| {
            matches!(digit, b'0'..=b'7').then(|| value * 8 + i128::from(digit - b'0'))
        })
}

/// A decimal number without a sign.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// A time such as `-12.5`: the whole seconds at or before it, and the nanoseconds after them.
pub(super) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let point = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = text.split_at(point.unwrap_or(text.len()));
    let fraction = fraction.strip_prefix(b".").unwrap_or(fraction);
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let whole = i64::try_from(decimal(whole)?).ok()?;
    let digit = |place| {
        fraction
            .get(place)
            .map_or(0, |digit| u32::from(digit - b'0'))
    };
    let nanos = (0..9).fold(0, |nanos, place| nanos * 10 + digit(place));
    let is_part = fraction.iter().any(|digit| *digit != b'0');
    match (negative, is_part) {
        (false, _) => Some((whole, nanos)),
        (true, false) => Some((-whole, 0)),
        (true, true) => Some((
            (-whole).checked_sub(1)?,
            (1_000_000_000 - nanos).min(999_999_999),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        let cases: [(&[u8], Option<i128>); 11] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0 xx", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"6 4\0", None),
            (b"-1\0", None),
            (b"9\0", None),
            (b"\x80\0\0\0\0\x20\0\0", Some(1 << 21)),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
                Some(-2),
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(field(bytes), expected, "{}", bytes.escape_ascii());
        }
        assert_eq!(
            field(&[0xbf; 12]),
            Some((0x3f_bf_bf_bf << 64) | 0xbfbf_bfbf_bfbf_bfbf)
        );
    }

    #[test]
    fn times_are_rounded_down() {
        type Case = (&'static [u8], Option<(i64, u32)>);
        let cases: [Case; 12] = [
            (b"12", Some((12, 0))),
            (b"12.999", Some((12, 999_000_000))),
            (b"12.0000000019", Some((12, 1))),
            (b"12.", Some((12, 0))),
            (b"-12", Some((-12, 0))),
            (b"-12.0", Some((-12, 0))),
            (b"-12.25", Some((-13, 750_000_000))),
            (b"-12.0000000001", Some((-13, 999_999_999))),
            (b"", None),
            (b"1e9", None),
            (b"9223372036854775808", None),
            (b".5", None),
        ];
        for (text, expected) in cases {
            assert_eq!(time(text), expected, "{}", text.escape_ascii());
        }
    }
}
