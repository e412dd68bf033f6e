//! Patterns of layer names, as a shell has them for files.

/// Whether `name` fits `pattern`: `*` stands for any characters, `?` for one, `[0-3x]` for one of those,
/// `[!0-3x]` for one of the others. A bracket that is not closed stands for itself.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Where the last star was, and how much of the name it stands for: only it can stand for more.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, n));
            p += 1;
        } else if let Some(length) = one(&pattern[p..], name[n]) {
            (p, n) = (p + length, n + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, n) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// How much of a pattern stands for the character `c` at its start; `None` if it does not.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        [] => None,
        ['?', ..] => Some(1),
        ['[', rest @ ..] => match rest.iter().skip(1).position(|&c| c == ']') {
            Some(end) => in_class(&rest[..=end], c).then_some(end + 3),
            None => (c == '[').then_some(1),
        },
        [first, ..] => (*first == c).then_some(1),
    }
}

/// Whether `c` is in what stands between brackets.
fn in_class(class: &[char], c: char) -> bool {
    let (class, negated) = match class {
        ['!', rest @ ..] if !rest.is_empty() => (rest, true),
        class => (class, false),
    };
    let mut rest = class;
    let mut found = false;
    while let [first, tail @ ..] = rest {
        rest = match tail {
            ['-', last, tail @ ..] => {
                found |= (*first..=*last).contains(&c);
                tail
            }
            tail => {
                found |= *first == c;
                tail
            }
        };
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_are_a_shells() {
        for (pattern, name) in [
            ("layer1.*.conv?", "layer1.0.conv2"),
            ("*", ""),
            ("a*c", "abc"),
            ("*.conv[12]", "layer1.0.conv2"),
            ("layer[1-3].*", "layer2.0.conv1"),
            ("layer[!4].*", "layer2.0.conv1"),
            ("a[", "a["),
            ("*a*a*b", "aaaaab"),
            ("fc", "fc"),
        ] {
            assert!(matches(pattern, name), "{pattern} should fit {name}");
        }
        for (pattern, name) in [
            ("layer1.*", "layer10.0"),
            ("a*c", "abd"),
            ("conv?", "conv"),
            ("layer[1-3].*", "layer4.0"),
            ("layer[!4].*", "layer4.0"),
            ("", "a"),
            ("fc", "fc2"),
        ] {
            assert!(!matches(pattern, name), "{pattern} should not fit {name}");
        }
    }

    /// Many stars take time in proportion to both lengths, not to their power.
    #[test]
    fn a_hostile_pattern_ends() {
        let pattern = "a*".repeat(2_000) + "b";
        assert!(!matches(&pattern, &"a".repeat(20_000)));
    }
}
