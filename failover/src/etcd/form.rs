//! Keys, transactions and answers as the JSON of etcd's gateway (`/v3/...`): 64-bit numbers are
//! strings, bytes are base64, and what is false or zero is left out. The values of our keys are
//! JSON too, so that `etcdctl get --prefix` shows them.

use failover_core::etcd::{Answer, Ask, Contents, Founder, Key, LeaseKey, Transaction, Value};
use failover_core::{ClusterState, NodeName};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::EtcdConfig;
use crate::datagram::Authenticate;

/// The form of the values; others are refused.
const FORMAT: u32 = 1;

/// Keys of one cluster.
pub(super) struct Form {
    prefix: String,
    authenticate: Authenticate,
}

#[derive(Serialize, Deserialize)]
struct FounderForm {
    format: u32,
    cluster: String,
    /// In hexadecimal digits, as `proof`.
    id: String,
    /// The code of name and id with the cluster's key.
    proof: String,
}

#[derive(Serialize, Deserialize)]
struct Formatted<T> {
    format: u32,
    value: T,
    /// The code of key and value with the cluster's key: what somebody else wrote is refused.
    proof: String,
}

impl Form {
    pub(super) fn new(config: &EtcdConfig) -> Self {
        let prefix = config.prefix.trim_end_matches('/').to_owned();
        Self { prefix, authenticate: config.authenticate.clone() }
    }

    fn key(&self, key: &Key) -> String {
        match key {
            Key::Founder => format!("{}/founder", self.prefix),
            Key::State => format!("{}/state", self.prefix),
            Key::Lease(node) => format!("{}/lease/{node}", self.prefix),
        }
    }

    fn read_key(&self, text: &str) -> Option<Key> {
        match text.strip_prefix(&self.prefix)?.strip_prefix('/')? {
            "founder" => Some(Key::Founder),
            "state" => Some(Key::State),
            rest => Some(Key::Lease(NodeName(rest.strip_prefix("lease/")?.to_owned()))),
        }
    }

    /// Path and body of a question.
    pub(super) fn request(&self, ask: &Ask) -> (&'static str, Json) {
        match ask {
            Ask::Read => ("/v3/kv/range", self.range()),
            Ask::Write(transaction) => ("/v3/kv/txn", self.transaction(transaction)),
        }
    }

    /// Everything below the prefix; linearizable, which is etcd's default.
    fn range(&self) -> Json {
        // The first key after all that begin with "PREFIX/".
        json!({ "key": base64(format!("{}/", self.prefix).as_bytes()),
                "range_end": base64(format!("{}0", self.prefix).as_bytes()) })
    }

    fn transaction(&self, transaction: &Transaction) -> Json {
        let compares: Vec<Json> = transaction
            .compares
            .iter()
            .map(|(key, revision)| {
                json!({ "key": base64(self.key(key).as_bytes()), "target": "MOD",
                        "result": "EQUAL", "mod_revision": revision.to_string() })
            })
            .collect();
        let puts: Vec<Json> = transaction
            .puts
            .iter()
            .map(|(key, value)| {
                let put = json!({ "key": base64(self.key(key).as_bytes()),
                                  "value": base64(&self.bytes(value)) });
                json!({ "request_put": put })
            })
            .collect();
        json!({ "compare": compares, "success": puts,
                "failure": [{ "request_range": self.range() }] })
    }

    pub(super) fn watch_request(&self) -> Json {
        json!({ "create_request": self.range() })
    }

    fn bytes(&self, value: &Value) -> Vec<u8> {
        let done = match value {
            Value::Founder(founder) => serde_json::to_vec(&FounderForm {
                format: FORMAT,
                cluster: founder.cluster.clone(),
                id: format!("{:032x}", founder.id),
                proof: self.proof(founder),
            }),
            Value::State(state) => serde_json::to_vec(&self.formatted("state", state)),
            Value::Lease(lease) => serde_json::to_vec(&self.formatted("lease", lease)),
        };
        done.expect("our own values have a form")
    }

    fn formatted<T: Serialize>(&self, kind: &str, value: T) -> Formatted<T> {
        let bytes = serde_json::to_vec(&value).expect("our own values have a form");
        Formatted { format: FORMAT, value, proof: self.code(&[kind.as_bytes(), &bytes]) }
    }

    fn proof(&self, founder: &Founder) -> String {
        self.code(&[b"founder", founder.cluster.as_bytes(), &founder.id.to_le_bytes()])
    }

    fn code(&self, parts: &[&[u8]]) -> String {
        let parts = [&[b"etcd".as_slice()], parts].concat();
        (self.authenticate)(&parts).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A value that was written with our key.
    fn read_value<T>(&self, kind: &str, bytes: &[u8]) -> Result<T, String>
    where
        T: Serialize + serde::de::DeserializeOwned,
    {
        check_format(bytes)?;
        let form: Formatted<T> =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let is_ours = self.formatted(kind, &form.value).proof == form.proof;
        if is_ours { Ok(form.value) } else { Err("this cluster's key did not write it".into()) }
    }

    // ------------------------------------------------------------------ answers

    /// What etcd answered.
    pub(super) fn answer(&self, ask: &Ask, bytes: &[u8]) -> Result<Answer, String> {
        let answer: Json = serde_json::from_slice(bytes)
            .map_err(|error| format!("its answer is no JSON: {error}"))?;
        let header = &answer["header"];
        let (store, revision) = (number(header, "cluster_id")?, number(header, "revision")?);
        if revision == 0 {
            return Err("its answer has no revision".into());
        }
        let range = match ask {
            Ask::Read => &answer,
            Ask::Write(_) if answer["succeeded"].as_bool() == Some(true) => {
                return Ok(Answer::Written { revision });
            }
            Ask::Write(_) => &answer["responses"][0]["response_range"],
        };
        if !range.is_object() {
            return Err("its answer to a transaction lacks what is there".into());
        }
        let mut contents = Contents { store, revision, ..Contents::default() };
        let entries = || range["kvs"].as_array().into_iter().flatten();
        for entry in entries() {
            self.read_founder(entry, &mut contents)?;
        }
        if contents.founder.as_ref().is_some_and(|(_, is_our_key)| !is_our_key) {
            // Nothing else there is ours.
            return Ok(Answer::Contents(Box::new(contents)));
        }
        for entry in entries() {
            self.read_entry(entry, &mut contents)?;
        }
        Ok(Answer::Contents(Box::new(contents)))
    }

    fn read_founder(&self, entry: &Json, contents: &mut Contents) -> Result<(), String> {
        let name = String::from_utf8_lossy(&bytes_of(entry, "key")?).into_owned();
        if self.read_key(&name) == Some(Key::Founder) {
            let founder = self.founder(&bytes_of(entry, "value")?);
            contents.founder = Some(founder.map_err(|why| strange(&name, &why))?);
        }
        Ok(())
    }

    fn read_entry(&self, entry: &Json, contents: &mut Contents) -> Result<(), String> {
        let key = bytes_of(entry, "key")?;
        let name = String::from_utf8_lossy(&key).into_owned();
        let Some(key) = self.read_key(&name) else { return Ok(()) };
        let revision = number(entry, "mod_revision")?;
        let value = bytes_of(entry, "value")?;
        let strange = |why: String| strange(&name, &why);
        match key {
            Key::Founder => {}
            Key::State => {
                let state: ClusterState = self.read_value("state", &value).map_err(strange)?;
                contents.state = Some((revision, state));
            }
            Key::Lease(node) => {
                let lease: LeaseKey = self.read_value("lease", &value).map_err(strange)?;
                contents.leases.insert(node, (revision, lease));
            }
        }
        Ok(())
    }

    fn founder(&self, bytes: &[u8]) -> Result<(Founder, bool), String> {
        check_format(bytes)?;
        let form: FounderForm = serde_json::from_slice(bytes).map_err(|it| it.to_string())?;
        let id = u128::from_str_radix(&form.id, 16).map_err(|error| error.to_string())?;
        let founder = Founder { cluster: form.cluster, id };
        let is_our_key = self.proof(&founder) == form.proof;
        Ok((founder, is_our_key))
    }

    /// Whether a line of a watch tells of a change that this node did not make to its own lease.
    pub(super) fn is_change_by_others(&self, line: &[u8], me: &NodeName) -> bool {
        let Ok(told) = serde_json::from_slice::<Json>(line) else { return false };
        let own = base64(self.key(&Key::Lease(me.clone())).as_bytes());
        let mut events = told["result"]["events"].as_array().into_iter().flatten();
        events.any(|event| event["kv"]["key"].as_str() != Some(&own))
    }
}

fn strange(name: &str, why: &str) -> String {
    format!("the key {name} cannot be understood: {why}")
}

fn check_format(bytes: &[u8]) -> Result<(), String> {
    let value: Json = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match value["format"].as_u64() {
        Some(format) if format == u64::from(FORMAT) => Ok(()),
        Some(format) => Err(format!("it has form {format}, this version knows {FORMAT}")),
        None => Err("it has no `format`".into()),
    }
}

/// A 64-bit number; one that is left out is zero.
fn number(from: &Json, field: &str) -> Result<u64, String> {
    match &from[field] {
        Json::Null => Ok(0),
        Json::String(text) => text.parse().map_err(|_| format!("`{field}` is {text:?}")),
        Json::Number(number) => number.as_u64().ok_or_else(|| format!("`{field}` is {number}")),
        other => Err(format!("`{field}` is {other}")),
    }
}

fn bytes_of(from: &Json, field: &str) -> Result<Vec<u8>, String> {
    match &from[field] {
        Json::Null => Ok(Vec::new()),
        Json::String(text) => {
            from_base64(text).ok_or_else(|| format!("`{field}` is no base64: {text:?}"))
        }
        other => Err(format!("`{field}` is {other}")),
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The standard alphabet, with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - chunk.len()));
        for place in 0..4 {
            if place <= chunk.len() {
                let digit = word >> (18 - 6 * place) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// The same back; `None` for anything else.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for chunk in digits.chunks(4) {
        let mut word = 0_u32;
        for digit in chunk {
            let value = DIGITS.iter().position(|known| known == digit)?;
            word = word << 6 | value as u32;
        }
        word <<= 6 * (4 - chunk.len());
        let count = match chunk.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        bytes.extend_from_slice(&word.to_be_bytes()[1..=count]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::Arc;
    use std::time::Duration;

    use failover_core::Span;
    use failover_core::cluster::{Epoch, Voter};
    use failover_core::etcd::Kept;
    use proptest::prelude::*;

    use super::*;

    fn form(key: u8) -> Form {
        Form::new(&EtcdConfig {
            endpoints: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 2379))],
            prefix: "/replicator/shop/".into(),
            tls: None,
            login: None,
            cluster: "shop".into(),
            authenticate: Arc::new(move |parts| {
                let mut code = [key; 32];
                for (at, byte) in parts.concat().into_iter().enumerate() {
                    code[at % 32] ^= byte;
                }
                code
            }),
            lease: Duration::from_secs(5),
        })
    }

    fn entry(key: &str, revision: &str, value: &[u8]) -> Json {
        json!({ "key": base64(key.as_bytes()), "create_revision": "2", "version": "9",
                "mod_revision": revision, "value": base64(value) })
    }

    #[test]
    fn what_is_written_is_read_again() {
        let form = form(1);
        let state = ClusterState {
            revision: 9,
            epoch: Epoch { number: 1, founder: u128::MAX - 1 },
            voters: vec![Voter { node: "alpha".into(), acceptor: u128::MAX, witness: false }],
            lease: Span::from_ms(5_000),
            ..ClusterState::default()
        };
        let founder = Founder { cluster: "shop".into(), id: u128::MAX - 1 };
        let offices = vec![Kept {
            resource: "demo".into(),
            tenure: 3,
            counter: 7,
            duration: Span::from_ms(5_000),
        }];
        let lease = LeaseKey { process: u64::MAX, counter: 8, offices };
        let value = |value| form.bytes(&value);
        let answer = json!({
            "header": { "cluster_id": "14841639068965178418", "revision": "12" },
            "kvs": [
                entry("/replicator/shop/founder", "2", &value(Value::Founder(founder.clone()))),
                entry("/replicator/shop/lease/alpha", "12", &value(Value::Lease(lease.clone()))),
                entry("/replicator/shop/state", "11", &value(Value::State(state.clone().into()))),
                entry("/replicator/shop/note", "11", b"not ours"),
            ],
        });
        let read = form.answer(&Ask::Read, answer.to_string().as_bytes()).unwrap();
        let Answer::Contents(contents) = read else { panic!("{read:?}") };
        assert_eq!((contents.store, contents.revision), (14_841_639_068_965_178_418, 12));
        assert_eq!(contents.founder, Some((founder, true)));
        assert_eq!(contents.state, Some((11, state)));
        assert_eq!(contents.leases.get(&NodeName::from("alpha")), Some(&(12, lease)));
    }

    #[test]
    fn a_founder_with_another_key_is_seen() {
        let founder = Founder { cluster: "shop".into(), id: 5 };
        let bytes = form(1).bytes(&Value::Founder(founder.clone()));
        assert_eq!(form(2).founder(&bytes), Ok((founder, false)));
    }

    #[test]
    fn a_transaction_has_the_form_that_etcd_takes() {
        let form = form(1);
        let transaction = Transaction {
            compares: vec![(Key::State, 0), (Key::Lease("beta".into()), 77)],
            puts: Vec::new(),
        };
        let (path, body) = form.request(&Ask::Write(transaction));
        assert_eq!(path, "/v3/kv/txn");
        assert_eq!(body["compare"][1]["mod_revision"], "77");
        assert_eq!(body["compare"][0]["key"], base64(b"/replicator/shop/state"));
        let range = &body["failure"][0]["request_range"];
        assert_eq!(range["key"], base64(b"/replicator/shop/"));
        assert_eq!(range["range_end"], base64(b"/replicator/shop0"));
    }

    #[test]
    fn only_the_own_lease_key_is_no_news() {
        let form = form(1);
        let line = |key: &str| {
            let told =
                json!({ "result": { "events": [{ "kv": { "key": base64(key.as_bytes()) } }] } });
            form.is_change_by_others(told.to_string().as_bytes(), &"alpha".into())
        };
        assert!(line("/replicator/shop/state") && line("/replicator/shop/lease/beta"));
        assert!(!line("/replicator/shop/lease/alpha"));
        assert!(!form.is_change_by_others(b"{\"result\":{\"created\":true}}", &"alpha".into()));
        assert!(!form.is_change_by_others(b"no json", &"alpha".into()));
    }

    #[test]
    fn a_value_of_a_later_form_is_refused() {
        let text = br#"{"format":2,"value":{}}"#;
        let error = form(1).read_value::<LeaseKey>("lease", text).unwrap_err();
        assert!(error.contains("form 2"), "{error}");
    }

    #[test]
    fn a_value_that_another_key_wrote_or_that_was_changed_is_refused() {
        let lease = LeaseKey { process: 5, counter: 8, offices: Vec::new() };
        let bytes = form(1).bytes(&Value::Lease(lease.clone()));
        assert_eq!(form(1).read_value("lease", &bytes), Ok(lease));
        assert!(form(2).read_value::<LeaseKey>("lease", &bytes).is_err());
        let changed = String::from_utf8(bytes).unwrap().replace("\"counter\":8", "\"counter\":9");
        let error = form(1).read_value::<LeaseKey>("lease", changed.as_bytes()).unwrap_err();
        assert!(error.contains("did not write it"), "{error}");
    }

    #[test]
    fn known_words_in_base64() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()));
        }
        for text in ["Z", "Zg=", "Zg", "Z===", "Zm9v!"] {
            assert_eq!(from_base64(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn base64_comes_back(bytes: Vec<u8>) {
            prop_assert_eq!(from_base64(&base64(&bytes)), Some(bytes));
        }

        #[test]
        fn no_answer_makes_it_panic(bytes: Vec<u8>) {
            let _ = form(1).answer(&Ask::Read, &bytes);
        }

        #[test]
        fn no_value_makes_it_panic(bytes: Vec<u8>, key in "(founder|state|lease/a)") {
            let key = format!("/replicator/shop/{key}");
            let kvs = [entry(&key, "2", &bytes)];
            let answer = json!({ "header": { "revision": "3" }, "kvs": kvs });
            prop_assert!(form(1).answer(&Ask::Read, answer.to_string().as_bytes()).is_err());
        }
    }
}
