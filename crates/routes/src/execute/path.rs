//! One form for each path, before anything looks at it: what policy sees is what is routed, and what
//! is forwarded.
//!
//! 1. A path begins with `/`; `*` is one for OPTIONS. A fragment, a control character, `%00` and a
//!    percent sign that no two hexadecimal digits follow are refused.
//! 2. A backslash is a slash (as WHATWG URL and Envoy's normalisation have it).
//! 3. Escaped unreserved characters (RFC 3986, section 2.3) are unescaped; other escapes are written
//!    in upper case, and stay: `%2F` is not a slash.
//! 4. Slashes in a row are one.
//! 5. Dot segments are removed (RFC 3986, section 5.2.4); above the root is the root.
//!
//! Case and `;parameters` stay as they are. The query is not looked at.

use std::borrow::Cow;

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPath {
    #[error("it does not begin with /")]
    NotAbsolute,
    #[error("it has a fragment")]
    Fragment,
    #[error("it has a percent sign that begins no escape")]
    Escape,
    #[error("it has a control character")]
    Control,
}

pub fn normalize(path: &str) -> Result<Cow<'_, str>, BadPath> {
    if path == "*" {
        return Ok(Cow::Borrowed(path));
    }
    if !path.starts_with('/') {
        return Err(BadPath::NotAbsolute);
    }
    if is_normal(path)? {
        return Ok(Cow::Borrowed(path));
    }
    let unescaped = unescape(path)?;
    Ok(Cow::Owned(without_dots(&unescaped)))
}

/// Whether nothing has to be done, as for nearly every request.
fn is_normal(path: &str) -> Result<bool, BadPath> {
    let mut before = 0;
    let mut normal = true;
    for b in path.bytes() {
        match b {
            b'#' => return Err(BadPath::Fragment),
            0..=0x20 | 0x7f => return Err(BadPath::Control),
            b'%' | b'\\' => normal = false,
            b'/' | b'.' if before == b'/' => normal = false,
            _ => {}
        }
        before = b;
    }
    Ok(normal)
}

fn unescape(path: &str) -> Result<String, BadPath> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'\\' => out.push(b'/'),
            b'%' => {
                let mut digit = || {
                    let b = bytes.next().ok_or(BadPath::Escape)?;
                    let value = char::from(b).to_digit(16).ok_or(BadPath::Escape)?;
                    u8::try_from(value).map_err(|_| BadPath::Escape)
                };
                let escaped = digit()? << 4 | digit()?;
                match escaped {
                    0 => return Err(BadPath::Control),
                    b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => out.push(b),
                    b => out.extend(format!("%{b:02X}").into_bytes()),
                }
            }
            b => out.push(b),
        }
    }
    // Only ASCII was put in place of ASCII.
    String::from_utf8(out).map_err(|_| BadPath::Escape)
}

fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut is_folder = false;
    for segment in path.split('/') {
        is_folder = false;
        match segment {
            "" | "." => is_folder = true,
            ".." => {
                kept.pop();
                is_folder = true;
            }
            s => kept.push(s),
        }
    }
    let mut out = String::with_capacity(path.len());
    for s in &kept {
        out.push('/');
        out.push_str(s);
    }
    if is_folder || out.is_empty() {
        out.push('/');
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_have_one_form() {
        for (path, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b///c", "/a/b/c"),
            ("/a/./b/../c", "/a/c"),
            ("/..", "/"),
            ("/../../etc/passwd", "/etc/passwd"),
            ("/a/%2e%2E/b", "/b"),
            ("/a%2fb", "/a%2Fb"),
            ("/%61dmin", "/admin"),
            ("/a\\..\\b", "/b"),
            ("/a/b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/a;p=1/..;x/b", "/a;p=1/..;x/b"),
            ("/A/B", "/A/B"),
            ("/%c0%af", "/%C0%AF"),
            ("/%252e%252e/", "/%252e%252e/"),
            ("*", "*"),
        ] {
            assert_eq!(normalize(path).unwrap(), normal, "{path}");
        }
    }

    #[test]
    fn what_has_no_form_is_refused() {
        for (path, why) in [
            ("", BadPath::NotAbsolute),
            ("a", BadPath::NotAbsolute),
            ("/a#b", BadPath::Fragment),
            ("/%", BadPath::Escape),
            ("/%4", BadPath::Escape),
            ("/%zz", BadPath::Escape),
            ("/%+1", BadPath::Escape),
            ("/%00", BadPath::Control),
            ("/a\tb", BadPath::Control),
            ("/a b", BadPath::Control),
        ] {
            assert_eq!(normalize(path), Err(why), "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_path_stays(path in "/[a-c./\\\\%0-9A-Fef;]{0,24}") {
            if let Ok(once) = normalize(&path) {
                prop_assert!(once.starts_with('/'));
                prop_assert!(!once.contains("//") && !once.contains('\\'));
                prop_assert!(once.split('/').all(|s| s != "." && s != ".."));
                let twice = normalize(&once).unwrap().into_owned();
                prop_assert_eq!(twice, once.into_owned());
            }
        }
    }
}
