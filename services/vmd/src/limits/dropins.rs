//! What an operator set for the unit, read from the texts of its files. Pure.

/// What the last of `texts` that says something says of `directive` in its section `[Service]`; `None` where nothing does, or
/// where the last word is an empty one, which takes all before it back.
#[must_use]
pub fn setting(texts: &[String], directive: &str) -> Option<String> {
    let mut setting = None;
    for text in texts {
        let mut is_service = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                is_service = line == "[Service]";
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            if is_service && name.trim_end() == directive {
                let value = value.trim();
                setting = (!value.is_empty()).then(|| value.to_owned());
            }
        }
    }
    setting
}

/// Whether a drop-in is one that `SetUnitProperties` wrote until the next boot: vmd's own.
#[must_use]
pub fn is_own(path: &str) -> bool {
    path.starts_with("/run/systemd/system.control/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_in_the_right_section_counts() {
        let cases: [(&[&str], Option<&str>); 9] = [
            (&[], None),
            (&["[Service]\nMemoryMax=1G\n"], Some("1G")),
            (&["[Service]\n MemoryMax = infinity \n"], Some("infinity")),
            (
                &["[Service]\nMemoryMax=1G", "[Service]\nMemoryMax=2G"],
                Some("2G"),
            ),
            (&["[Service]\nMemoryMax=1G", "[Service]\nMemoryMax="], None),
            (&["[Service]\n# MemoryMax=1G\n;MemoryMax=1G"], None),
            (&["[Unit]\nMemoryMax=1G\n[Service]\nMemoryHigh=1G"], None),
            (&["[Service]\n[Install]\nMemoryMax=1G"], None),
            (&["MemoryMax=1G\nnonsense\n[Service"], None),
        ];
        for (texts, expected) in cases {
            let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
            assert_eq!(
                setting(&texts, "MemoryMax").as_deref(),
                expected,
                "{texts:?}"
            );
        }
    }

    #[test]
    fn what_systemd_keeps_for_set_property_until_the_next_boot_is_vmds_own() {
        let own = "/run/systemd/system.control/volant-vm@web.service.d/50-MemoryMax.conf";
        assert!(is_own(own));
        for operators in [
            "/etc/systemd/system.control/volant-vm@web.service.d/50-MemoryMax.conf",
            "/etc/systemd/system/volant-vm@.service.d/limits.conf",
            "/run/systemd/system/volant-vm@web.service.d/limits.conf",
        ] {
            assert!(!is_own(operators), "{operators}");
        }
    }
}
