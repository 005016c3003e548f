//! A place in a CNI configuration for culvert-cni: text in, text out. What is not the plugin's own stays
//! as it is, to the byte.

use serde_json::Value;
use std::ops::Range;

pub const PLUGIN: &str = "culvert-cni";

/// Versions of the specification that the plugin speaks.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The list with the plugin as its last, or wherever it stands already. None: it is as it should be.
pub fn with_plugin(text: &str, plugin: &Value) -> Result<Option<String>, String> {
    let list = List::read(text)?;
    list.version_is_spoken()?;
    let own: Vec<&Element> = list.plugins.iter().filter(|p| p.is_own()).collect();
    match own.as_slice() {
        [] => Ok(Some(list.appended(plugin))),
        [only] if only.value == *plugin => Ok(None),
        [only] => Ok(Some(replaced(text, &only.at, &plugin.to_string()))),
        [..] => {
            let without = without_plugin(text)?.unwrap_or_else(|| text.to_owned());
            with_plugin(&without, plugin)
        }
    }
}

/// The list without the plugin. None: it is not there.
pub fn without_plugin(text: &str) -> Result<Option<String>, String> {
    let mut text = text.to_owned();
    let mut changed = false;
    loop {
        let list = List::read(&text)?;
        let Some(number) = list.plugins.iter().position(Element::is_own) else { break };
        let at = list.with_comma(number);
        text = replaced(&text, &at, "");
        changed = true;
    }
    Ok(changed.then_some(text))
}

/// A list of one plugin's configuration and this plugin.
pub fn list_of(conf: &str, plugin: &Value) -> Result<String, String> {
    let parsed: Value = serde_json::from_str(conf).map_err(|e| format!("is not JSON: {e}"))?;
    let name = parsed.get("name").and_then(Value::as_str).ok_or("has no name")?;
    if parsed.get("type").and_then(Value::as_str).is_none() {
        return Err("has no type: it is no plugin's configuration".to_owned());
    }
    let version = parsed.get("cniVersion").cloned().unwrap_or_default();
    let text = format!(
        "{{\n  \"cniVersion\": {version},\n  \"name\": {},\n  \"plugins\": [\n{}\n  ]\n}}\n",
        Value::from(name),
        conf.trim_end(),
    );
    Ok(with_plugin(&text, plugin)?.unwrap_or(text))
}

fn replaced(text: &str, at: &Range<usize>, by: &str) -> String {
    let part = |range: Range<usize>| text.get(range).unwrap_or_default();
    [part(0..at.start), by, part(at.end..text.len())].concat()
}

struct Element {
    at: Range<usize>,
    value: Value,
}

impl Element {
    fn is_own(&self) -> bool {
        self.value.get("type").and_then(Value::as_str) == Some(PLUGIN)
    }
}

/// A network configuration list, and where in its text its plugins are.
struct List<'a> {
    text: &'a str,
    version: Option<String>,
    /// Behind the opening bracket.
    opened: usize,
    plugins: Vec<Element>,
}

impl<'a> List<'a> {
    fn read(text: &'a str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
        if !value.get("plugins").is_some_and(Value::is_array) {
            return Err("has no list of plugins".to_owned());
        }
        let lost = || "its plugins cannot be found in its text".to_owned();
        let array = Scanner { text, at: 0 }.plugins().ok_or_else(lost)?;
        let mut plugins = Vec::new();
        for at in (Scanner { text, at: array }).elements().ok_or_else(lost)? {
            let element = text.get(at.clone()).unwrap_or_default();
            let value = serde_json::from_str(element).map_err(|_| lost())?;
            plugins.push(Element { at, value });
        }
        let version = value.get("cniVersion").and_then(Value::as_str).map(str::to_owned);
        Ok(Self { text, version, opened: array + 1, plugins })
    }

    fn version_is_spoken(&self) -> Result<(), String> {
        match self.version.as_deref() {
            Some(version) if VERSIONS.contains(&version) => Ok(()),
            found => Err(format!(
                "its cniVersion is {}, and culvert-cni speaks {}",
                found.unwrap_or("not there"),
                VERSIONS.join(", ")
            )),
        }
    }

    fn appended(&self, plugin: &Value) -> String {
        let Some(last) = self.plugins.last() else {
            return replaced(self.text, &(self.opened..self.opened), &plugin.to_string());
        };
        // As the one before it stands behind what is before that.
        let before = match self.plugins.as_slice() {
            [.., other, _] => other.at.end,
            _ => self.opened,
        };
        let between = self.text.get(before..last.at.start).unwrap_or_default();
        let space = between.trim_start_matches([' ', '\n', '\r', '\t']).trim_start_matches(',');
        let space = if between.contains(',') { space } else { between };
        replaced(self.text, &(last.at.end..last.at.end), &format!(",{space}{plugin}"))
    }

    /// The plugin of this number, and the comma that goes with it.
    fn with_comma(&self, number: usize) -> Range<usize> {
        let end_of = |n: usize| self.plugins.get(n).map_or(self.opened, |p| p.at.end);
        let start_of = |n: usize| self.plugins.get(n).map(|p| p.at.start);
        match (number.checked_sub(1), start_of(number + 1)) {
            (Some(before), _) => end_of(before)..end_of(number),
            (None, Some(next)) => start_of(0).unwrap_or(self.opened)..next,
            (None, None) => start_of(0).unwrap_or(self.opened)..end_of(0),
        }
    }
}

/// Finds its way in text that is known to be JSON.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Passes over the byte, where it is the next.
    fn pass(&mut self, byte: u8) -> bool {
        self.space();
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn string(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(start..self.at)
    }

    fn value(&mut self) -> Option<Range<usize>> {
        self.space();
        let start = self.at;
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    self.at += 1;
                }
                _ => self.at += 1,
            }
            let ends = |b: u8| matches!(b, b',' | b'}' | b']') || b.is_ascii_whitespace();
            if depth == 0 && self.peek().is_none_or(ends) {
                return Some(start..self.at);
            }
        }
    }

    /// Where the array `plugins` of the outermost object begins; of several, the last, which counts.
    fn plugins(&mut self) -> Option<usize> {
        let mut found = None;
        if !self.pass(b'{') {
            return None;
        }
        loop {
            self.space();
            if self.peek()? == b'}' {
                return found;
            }
            let key = self.string()?;
            if !self.pass(b':') {
                return None;
            }
            let value = self.value()?;
            let key: String = serde_json::from_str(self.text.get(key)?).ok()?;
            if key == "plugins" {
                found = Some(value.start);
            }
            self.pass(b',');
        }
    }

    fn elements(&mut self) -> Option<Vec<Range<usize>>> {
        let mut elements = Vec::new();
        if !self.pass(b'[') {
            return None;
        }
        loop {
            self.space();
            if self.peek()? == b']' {
                return Some(elements);
            }
            elements.push(self.value()?);
            self.pass(b',');
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    const LIST: &str = r#"{
  "name": "cbr0",   "cniVersion": "0.3.1",
  "plugins": [
    {"type": "flannel", "delegate": {"mtu": 1.450e3, "x": "a, \"plugins\": [ ]}"}},
    {
      "type": "portmap",
      "capabilities": {"portMappings": true}
    }
  ]
}
"#;

    fn plugin() -> Value {
        json!({"type": PLUGIN, "runDir": "/run/culvert", "excludeNamespaces": ["kube-system"]})
    }

    fn types(text: &str) -> Vec<String> {
        let value: Value = serde_json::from_str(text).unwrap();
        let plugins = value["plugins"].as_array().unwrap();
        plugins.iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_plugin_is_appended_once_and_all_else_stays_to_the_byte() {
        let with = with_plugin(LIST, &plugin()).unwrap().unwrap();
        assert_eq!(types(&with), ["flannel", "portmap", PLUGIN]);
        assert!(with.contains("\"mtu\": 1.450e3"), "{with}");
        assert_eq!(with_plugin(&with, &plugin()), Ok(None));
        assert_eq!(without_plugin(&with).unwrap().unwrap(), LIST);
        assert_eq!(without_plugin(LIST), Ok(None));
    }

    #[test]
    fn lists_of_none_and_one() {
        for list in [
            r#"{"cniVersion":"1.0.0","name":"a","plugins":[]}"#,
            r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"ptp"}]}"#,
            "{\"plugins\": [ {\"type\": \"ptp\"} ], \"cniVersion\": \"1.0.0\", \"name\": \"a\"}",
        ] {
            let with = with_plugin(list, &plugin()).unwrap().unwrap();
            assert_eq!(types(&with).last().unwrap(), PLUGIN);
            assert_eq!(without_plugin(&with).unwrap().unwrap(), list, "{with}");
        }
    }

    #[test]
    fn an_older_place_is_mended_and_doubles_go() {
        let old = json!({"type": PLUGIN, "runDir": "/elsewhere"});
        let with = with_plugin(LIST, &old).unwrap().unwrap();
        let mended = with_plugin(&with, &plugin()).unwrap().unwrap();
        assert_eq!(mended, with_plugin(LIST, &plugin()).unwrap().unwrap());

        let list = json!({"cniVersion": "1.0.0", "name": "a",
            "plugins": [old, {"type": "ptp"}, plugin(), {"type": "tuning"}]});
        let mended = with_plugin(&list.to_string(), &plugin()).unwrap().unwrap();
        assert_eq!(types(&mended), ["ptp", "tuning", PLUGIN]);
        assert_eq!(types(&without_plugin(&list.to_string()).unwrap().unwrap()), ["ptp", "tuning"]);
    }

    #[test]
    fn one_plugin_becomes_a_list() {
        let conf =
            "{\n  \"cniVersion\": \"0.4.0\", \"name\": \"lo\\u0061\", \"type\": \"ptp\"\n}\n";
        let list = list_of(conf, &plugin()).unwrap();
        assert_eq!(types(&list), ["ptp", PLUGIN]);
        let value: Value = serde_json::from_str(&list).unwrap();
        assert_eq!((&value["name"], &value["cniVersion"]), (&json!("loa"), &json!("0.4.0")));
        assert!(list_of("{\"cniVersion\": \"0.4.0\", \"name\": \"x\"}", &plugin()).is_err());
    }

    #[test]
    fn what_it_cannot_take_is_named() {
        let says = |text: &str, what: &str| {
            let why = with_plugin(text, &plugin()).unwrap_err();
            assert!(why.contains(what), "{why}");
        };
        says("{", "not JSON");
        says("[]", "no list of plugins");
        says(r#"{"cniVersion": "1.0.0", "plugins": {}}"#, "no list of plugins");
        says(r#"{"cniVersion": "0.2.0", "plugins": []}"#, "0.2.0");
        says(r#"{"plugins": []}"#, "not there");
    }
}
