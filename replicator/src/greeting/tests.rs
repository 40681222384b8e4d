//! Two greetings talk to each other in memory, whole and in pieces, right and wrong.

use proptest::prelude::*;

use super::*;

struct AdmitAll;
impl Directory for AdmitAll {
    fn admit(&self, _: &Identity) -> Result<(), Refusal> {
        Ok(())
    }
}

struct AdmitNone;
impl Directory for AdmitNone {
    fn admit(&self, identity: &Identity) -> Result<(), Refusal> {
        let text = format!("{} is not up here", identity.resource);
        Err(Refusal { code: RefusalCode::ResourceDown, text })
    }
}

fn key(byte: u8) -> ClusterKey {
    ClusterKey::from_bytes(&[byte; 32])
}

fn identity(cluster: &str, node: &str, peer: &str) -> Identity {
    Identity {
        cluster: cluster.into(),
        node: node.into(),
        peer: peer.into(),
        resource: "shop".into(),
    }
}

struct Talk {
    dialer: Greeting,
    listener: Greeting,
    to_listener: Vec<u8>,
    to_dialer: Vec<u8>,
}

impl Talk {
    fn new(dialer_key: u8, listener_key: u8, identity: Identity, node: &str) -> Self {
        let mut to_listener = Vec::new();
        let mut to_dialer = Vec::new();
        let dialer = Greeting::dial(key(dialer_key), identity, [1; 32], &mut to_listener);
        let listener = Greeting::listen(
            key(listener_key),
            "cluster".into(),
            node.into(),
            [2; 32],
            &mut to_dialer,
        );
        Self { dialer, listener, to_listener, to_dialer }
    }

    /// Lets them talk in pieces of so many bytes until nothing moves; what each ended with.
    fn run(
        mut self,
        piece: usize,
        directory: &dyn Directory,
    ) -> (Option<Outcome>, Option<Outcome>) {
        let (mut dialer_end, mut listener_end) = (None, None);
        loop {
            let mut moved = false;
            if dialer_end.is_none() && !self.to_dialer.is_empty() {
                let input: Vec<u8> =
                    self.to_dialer.drain(..piece.min(self.to_dialer.len())).collect();
                let progress = self.dialer.feed(&input, directory, &mut self.to_listener);
                moved = true;
                if progress.outcome != Outcome::NeedMore {
                    dialer_end = Some(progress.outcome);
                }
            }
            if listener_end.is_none() && !self.to_listener.is_empty() {
                let input: Vec<u8> =
                    self.to_listener.drain(..piece.min(self.to_listener.len())).collect();
                let progress = self.listener.feed(&input, directory, &mut self.to_dialer);
                moved = true;
                if progress.outcome != Outcome::NeedMore {
                    listener_end = Some(progress.outcome);
                }
            }
            if !moved {
                return (dialer_end, listener_end);
            }
        }
    }
}

fn failed(outcome: Option<Outcome>) -> GreetingError {
    match outcome {
        Some(Outcome::Failed(error)) => error,
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[test]
fn two_nodes_of_a_cluster_agree_with_pieces_of_any_size() {
    for piece in [1, 2, 3, 47, 48, 49, 50, 1000] {
        let talk = Talk::new(7, 7, identity("cluster", "alpha", "beta"), "beta");
        let (dialer, listener) = talk.run(piece, &AdmitAll);
        let resource = String::from("shop");
        let version = VERSIONS.1;
        let with_beta = Agreement { peer: "beta".into(), resource: resource.clone(), version };
        let with_alpha = Agreement { peer: "alpha".into(), resource, version };
        assert_eq!(dialer, Some(Outcome::Agreed(with_beta)));
        assert_eq!(listener, Some(Outcome::Agreed(with_alpha)));
    }
}

#[test]
fn bytes_after_the_greeting_are_left_to_replication() {
    let mut to_listener = Vec::new();
    let mut to_dialer = Vec::new();
    let me = identity("cluster", "alpha", "beta");
    let mut dialer = Greeting::dial(key(7), me, [1; 32], &mut to_listener);
    let mut listener =
        Greeting::listen(key(7), "cluster".into(), "beta".into(), [2; 32], &mut to_dialer);
    for _ in 0..2 {
        let _ = listener.feed(&std::mem::take(&mut to_listener), &AdmitAll, &mut to_dialer);
        let _ = dialer.feed(&std::mem::take(&mut to_dialer), &AdmitAll, &mut to_listener);
    }
    let _ = listener.feed(&std::mem::take(&mut to_listener), &AdmitAll, &mut to_dialer);
    let progress = dialer.feed(&std::mem::take(&mut to_dialer), &AdmitAll, &mut to_listener);
    assert!(matches!(progress.outcome, Outcome::Agreed(_)));
    let greeting_end = to_listener.len();
    to_listener.extend_from_slice(b"first frame");
    let progress = listener.feed(&to_listener, &AdmitAll, &mut to_dialer);
    assert!(matches!(progress.outcome, Outcome::Agreed(_)));
    assert_eq!(progress.consumed, greeting_end);
}

#[test]
fn a_wrong_key_is_named_on_both_sides() {
    let talk = Talk::new(7, 8, identity("cluster", "alpha", "beta"), "beta");
    let (dialer, listener) = talk.run(1000, &AdmitAll);
    assert_eq!(failed(dialer), GreetingError::WrongKeyThere);
    assert_eq!(failed(listener), GreetingError::WrongKey);
}

#[test]
fn a_wrong_cluster_is_named_on_both_sides() {
    let talk = Talk::new(7, 7, identity("other", "alpha", "beta"), "beta");
    let (dialer, listener) = talk.run(5, &AdmitAll);
    let text = failed(dialer).to_string();
    assert!(text.contains("belongs to cluster \"other\", this node to \"cluster\""), "{text}");
    assert_eq!(failed(listener).name(), "wrong_cluster");
}

#[test]
fn a_node_that_meets_itself_says_so() {
    let talk = Talk::new(7, 7, identity("cluster", "beta", "beta"), "beta");
    let (dialer, listener) = talk.run(1000, &AdmitAll);
    assert_eq!(failed(dialer).name(), "self_connection");
    assert_eq!(failed(listener), GreetingError::Itself("beta".into()));
}

#[test]
fn a_wrong_address_is_named_on_both_sides() {
    let talk = Talk::new(7, 7, identity("cluster", "alpha", "gamma"), "beta");
    let (dialer, listener) = talk.run(1000, &AdmitAll);
    assert_eq!(failed(dialer).name(), "wrong_node");
    let text = failed(listener).to_string();
    assert!(text.contains("alpha wanted gamma but reached beta"), "{text}");
}

#[test]
fn a_refusal_of_the_directory_reaches_the_dialer_in_words() {
    let talk = Talk::new(7, 7, identity("cluster", "alpha", "beta"), "beta");
    let (dialer, listener) = talk.run(3, &AdmitNone);
    assert_eq!(failed(dialer).to_string(), "the other end refused: shop is not up here");
    assert_eq!(failed(listener).name(), "resource_down");
}

#[test]
fn versions_without_overlap_are_named_on_both_sides() {
    let mut talk = Talk::new(7, 7, identity("cluster", "alpha", "beta"), "beta");
    talk.to_listener[8] = VERSIONS.1 + 1;
    talk.to_listener[9] = VERSIONS.1 + 2;
    let (_, listener) = talk.run(1000, &AdmitAll);
    assert_eq!(failed(listener), GreetingError::Version(VERSIONS.1 + 1, VERSIONS.1 + 2));
    let mut out = Vec::new();
    let me = identity("cluster", "alpha", "beta");
    let mut dialer = Greeting::dial(key(7), me, [1; 32], &mut out);
    let mut opening = out.clone();
    opening[8] = VERSIONS.1 + 1;
    opening[9] = VERSIONS.1 + 1;
    opening[10] = b'L';
    opening[16] ^= 1;
    let progress = dialer.feed(&opening, &AdmitAll, &mut out);
    let Outcome::Failed(error) = progress.outcome else { panic!("{progress:?}") };
    assert!(error.to_string().contains("upgrade the older node"), "{error}");
}

#[test]
fn a_reflected_opening_is_refused() {
    let mut out = Vec::new();
    let me = identity("cluster", "alpha", "beta");
    let mut dialer = Greeting::dial(key(7), me, [1; 32], &mut out);
    let reflected = out.clone();
    let progress = dialer.feed(&reflected, &AdmitAll, &mut out);
    assert_eq!(progress.outcome, Outcome::Failed(GreetingError::Reflected));
}

#[test]
fn a_busy_listener_is_understood() {
    let mut out = Vec::new();
    let me = identity("cluster", "alpha", "beta");
    let mut dialer = Greeting::dial(key(7), me, [1; 32], &mut out);
    let progress = dialer.feed(&busy_answer(), &AdmitAll, &mut out);
    let Outcome::Failed(error) = progress.outcome else { panic!("{progress:?}") };
    assert_eq!(error.name(), "busy");
}

#[test]
fn a_stranger_learns_nothing_before_its_proof() {
    let mut out = Vec::new();
    let mut listener = Greeting::listen(key(7), "cluster".into(), "beta".into(), [2; 32], &mut out);
    let opening_bytes = out.len();
    assert_eq!(opening_bytes, OPENING_BYTES);
    let mut hello = Vec::new();
    let _ = Greeting::dial(key(9), identity("cluster", "x", "beta"), [3; 32], &mut hello);
    let progress = listener.feed(&hello, &AdmitAll, &mut out);
    assert_eq!(progress.outcome, Outcome::NeedMore);
    assert_eq!(out.len(), opening_bytes, "the listener speaks only after the dialer's proof");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(input in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let mut out = Vec::new();
        let mut listener =
            Greeting::listen(key(7), "cluster".into(), "beta".into(), [2; 32], &mut out);
        let progress = listener.feed(&input, &AdmitAll, &mut out);
        prop_assert!(progress.consumed <= input.len());
        prop_assert!(!matches!(progress.outcome, Outcome::Agreed(_)));
    }

    #[test]
    fn one_changed_bit_never_ends_in_a_false_agreement(at in 0usize..600, bit in 0u8..8) {
        let mut to_listener = Vec::new();
        let mut to_dialer = Vec::new();
        let me = identity("cluster", "alpha", "beta");
        let mut dialer = Greeting::dial(key(7), me, [1; 32], &mut to_listener);
        let mut listener =
            Greeting::listen(key(7), "cluster".into(), "beta".into(), [2; 32], &mut to_dialer);
        let mut sent = 0;
        let mut changed = false;
        let mut listener_agreed = false;
        for _ in 0..6 {
            let mut input = std::mem::take(&mut to_listener);
            if let Some(byte) = at.checked_sub(sent).and_then(|at| input.get_mut(at)) {
                *byte ^= 1 << bit;
                changed = true;
            }
            sent += input.len();
            if !input.is_empty() {
                match listener.feed(&input, &AdmitAll, &mut to_dialer).outcome {
                    Outcome::NeedMore => {}
                    Outcome::Agreed(_) => { listener_agreed = true; break }
                    Outcome::Failed(_) => break,
                }
            }
            let answer = std::mem::take(&mut to_dialer);
            if !answer.is_empty() {
                match dialer.feed(&answer, &AdmitAll, &mut to_listener).outcome {
                    Outcome::NeedMore | Outcome::Agreed(_) => {}
                    Outcome::Failed(_) => break,
                }
                if to_listener.is_empty() { break }
            }
        }
        prop_assert!(!(changed && listener_agreed));
    }
}
