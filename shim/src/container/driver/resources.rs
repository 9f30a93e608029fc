//! What was changed of a container's resources since its bundle was made.
//!
//! A change of nothing but its CPU weight, as it follows from a request that is changed in place, wakes
//! nobody: while it sleeps the weight means nothing, and when it wakes it has the last one.

use std::fs;

use serde_json::Value;

use super::*;

/// Whether two `linux.resources` differ, if at all, in nothing but the weight of the CPU.
fn only_weight(before: &Value, after: &Value) -> bool {
    rest(before) == rest(after)
}

/// What is left without the weight, without what an update never changes, and without what says nothing.
fn rest(resources: &Value) -> Value {
    let mut rest = resources.clone();
    if let Some(all) = rest.as_object_mut() {
        all.remove("devices");
        if let Some(cpu) = all.get_mut("cpu").and_then(Value::as_object_mut) {
            cpu.remove("shares");
        }
        if let Some(unified) = all.get_mut("unified").and_then(Value::as_object_mut) {
            unified.remove("cpu.weight");
        }
    }
    said(rest)
}

/// Without empty values and zeros, which stand for "as it is".
fn said(value: Value) -> Value {
    match value {
        Value::Object(all) => {
            let all = all.into_iter().map(|(key, value)| (key, said(value)));
            Value::Object(all.filter(|(_, value)| !says_nothing(value)).collect())
        }
        other => other,
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::Bool(true) => false,
    }
}

/// Changes what `changes` names and leaves the rest.
fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (name, value) in changes {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, changes) => *into = changes,
    }
}

impl Driver {
    /// Has been told of these resources, and keeps what they change.
    pub(super) fn note_resources(&mut self, resources: &[u8]) {
        match serde_json::from_slice(resources) {
            Ok(changes) => merge(self.resources.get_or_insert_default(), said(changes)),
            Err(error) => warn!("container {}: note its resources: {error}", self.id),
        }
    }

    /// Whether the container need not be woken for these resources.
    pub(super) fn changes_only_weight(&self, resources: &[u8]) -> bool {
        let Ok(changes) = serde_json::from_slice(resources) else {
            // The runtime says what is wrong with it.
            return false;
        };
        let Some(mut before) = self.resources_at_first() else {
            return false;
        };
        if let Some(changed) = &self.resources {
            merge(&mut before, changed.clone());
        }
        let mut after = before.clone();
        merge(&mut after, said(changes));
        only_weight(&before, &after)
    }

    fn resources_at_first(&self) -> Option<Value> {
        let text = fs::read(self.bundle.join("config.json")).ok()?;
        let spec: Value = serde_json::from_slice(&text).ok()?;
        Some(spec.get("linux")?.get("resources")?.clone())
    }

    /// Has it have these resources when it wakes.
    pub(super) fn update_at_wake(&mut self, resources: &[u8]) {
        self.note_resources(resources);
        // All of it: those that came before may have said more.
        self.update_later = self
            .resources
            .as_ref()
            .map(|all| all.to_string().into_bytes());
    }

    /// It is awake: it gets the resources that came while it slept.
    pub(super) async fn update_now(&mut self) {
        let Some(resources) = self.update_later.take() else {
            return;
        };
        if self.init.phase == Phase::Stopped {
            return;
        }
        if let Err(error) = self.update(&resources).await {
            self.sleeper.update_failed(&error);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn another_weight_alone_wakes_nobody() {
        let before = json!({
            "devices": [{"allow": false}],
            "memory": {"limit": 209715200},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        });
        let mut after = json!({
            "memory": {"limit": 209715200, "swap": 0},
            "cpu": {"shares": 2, "quota": 50000, "period": 100000, "cpus": ""},
            "unified": {},
        });
        assert!(only_weight(&before, &after));
        after["cpu"]["quota"] = json!(60000);
        assert!(!only_weight(&before, &after));
    }

    #[test]
    fn a_limit_that_comes_or_goes_is_more_than_that() {
        let (without, with) = (
            json!({"cpu": {"shares": 2}}),
            json!({"memory": {"limit": 1}}),
        );
        assert!(!only_weight(&without, &with));
        assert!(!only_weight(&with, &without));
        assert!(only_weight(&without, &json!({})));
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let mut resources = Value::Null;
        merge(
            &mut resources,
            json!({"memory": {"limit": 5, "swap": 6}, "unified": {"a": "b"}}),
        );
        merge(
            &mut resources,
            json!({"memory": {"limit": 7}, "cpu": {"shares": 2}}),
        );
        let all = json!({
            "memory": {"limit": 7, "swap": 6}, "unified": {"a": "b"}, "cpu": {"shares": 2}
        });
        assert_eq!(resources, all);
    }
}
