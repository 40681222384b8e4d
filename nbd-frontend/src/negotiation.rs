//! The fixed newstyle negotiation, server side: from the greeting to an open export. It takes the
//! bytes of the client in pieces of any size, keeps at most 64 KiB of them, and never lets one
//! call produce output without bound.

use std::mem;

use thiserror::Error;

use crate::export::{Export, Exports, Refusal, RefusalKind};
use crate::protocol::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, CLIENT_FLAGS_LEN, EXPORT_NAME_PADDING_LEN,
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_LEN, GREETING_MAGIC, INFO_BLOCK_SIZE,
    INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO,
    OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY,
    OPTION_HEADER_LEN, OPTION_KEEP_MAX_LEN, OPTION_MAGIC, OPTION_REPLY_MAGIC, OPTION_SKIP_MAX_LEN,
    OPTIONS_MAX, OUTPUT_PAUSE_LEN, REP_ACK, REP_ERR_INVALID, REP_ERR_PLATFORM, REP_ERR_POLICY,
    REP_ERR_SHUTDOWN, REP_ERR_TOO_BIG, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT,
    REP_SERVER, STRING_MAX_LEN, clip_text, read_u16, read_u32, read_u64,
};
use crate::session::Session;

/// The 18 bytes that the server sends first.
pub fn greeting() -> [u8; GREETING_LEN] {
    let mut wire = [0; GREETING_LEN];
    wire[0..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    wire[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    wire[16..18].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    wire
}

/// The negotiation with one client. The driver gives it a deadline; it has no clock of its own.
#[derive(Debug)]
pub struct Negotiation {
    stage: Stage,
    /// Bytes of the unit that is being received: flags, an option header, or option data.
    pending: Vec<u8>,
    no_zeroes: bool,
    structured: bool,
    /// The name that contexts were chosen for, if base:allocation was among them.
    context_for: Option<String>,
    options_seen: u32,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    ClientFlags,
    OptionHeader,
    OptionData {
        option: u32,
        len: u32,
    },
    /// Read and drop, then answer with an error.
    Skip {
        option: u32,
        left: u32,
        error: u32,
        text: &'static str,
    },
    Over,
}

/// What one call of [`Negotiation::feed`] did.
#[derive(Debug)]
pub struct Progress {
    /// Bytes of the input that were used. All of them for [`State::NeedMore`]; after
    /// [`State::Transmission`] the rest already belongs to the session.
    pub consumed: usize,
    /// How to go on. In every case first send what is in the output.
    pub state: State,
}

/// How to go on after [`Negotiation::feed`].
#[derive(Debug)]
pub enum State {
    /// Receive more, then feed it.
    NeedMore,
    /// Much output is waiting: send it, then feed the rest of the same input.
    SendFirst,
    /// The client opened an export.
    Transmission {
        /// What it opened.
        export: Box<Export>,
        /// The parser for what it sends from now on.
        session: Session,
    },
    /// Send what is in the output, then close.
    Close(CloseReason),
}

/// Why a negotiation ended without an open export.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CloseReason {
    /// The orderly end.
    #[error("client aborted the negotiation")]
    Aborted,
    /// The client set flags that we did not offer.
    #[error("client answered the greeting with unknown flags {flags:#x}")]
    UnknownClientFlags {
        /// All flags it sent.
        flags: u32,
    },
    /// Not an NBD client, or one that lost step.
    #[error("client sent option magic {got:#018x} where {OPTION_MAGIC:#018x} was due")]
    BadOptionMagic {
        /// The eight bytes that stood there.
        got: u64,
    },
    /// Longer than any option can be.
    #[error("client announced {len} bytes of data for option {option}")]
    OptionTooLong {
        /// Number of the option.
        option: u32,
        /// Announced length in bytes.
        len: u32,
    },
    /// The client asks and asks and never opens anything.
    #[error("client sent more than {OPTIONS_MAX} options")]
    TooManyOptions,
    /// EXPORT_NAME knows no error reply, so a refusal is a closed connection.
    #[error("client asked for export {name:?} by EXPORT_NAME: {text}")]
    ExportRefused {
        /// The name it asked for; at most 256 bytes of it.
        name: String,
        /// Why not.
        text: String,
    },
}

/// Result of one option.
enum Outcome {
    Continue,
    Open(Box<Export>, Session),
    Close(CloseReason),
}

/// An error reply to an option: type and text.
struct Denial {
    error: u32,
    text: String,
}

impl Denial {
    fn invalid(text: &str) -> Self {
        Self { error: REP_ERR_INVALID, text: text.to_owned() }
    }
}

impl Default for Negotiation {
    fn default() -> Self {
        Self::new()
    }
}

impl Negotiation {
    /// A negotiation whose [`greeting`] the driver has sent or is about to send.
    pub fn new() -> Self {
        Self {
            stage: Stage::ClientFlags,
            pending: Vec::new(),
            no_zeroes: false,
            structured: false,
            context_for: None,
            options_seen: 0,
        }
    }

    /// Takes bytes of the client and appends the answers to `out`. One call appends at most
    /// 32 KiB and the answer to one option. Panics when called after the negotiation ended.
    pub fn feed(&mut self, input: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Progress {
        let out_start = out.len();
        let mut consumed = 0;
        loop {
            if out.len() - out_start >= OUTPUT_PAUSE_LEN && consumed < input.len() {
                return Progress { consumed, state: State::SendFirst };
            }
            consumed += self.take(&input[consumed..]);
            if !self.unit_is_complete() {
                return Progress { consumed, state: State::NeedMore };
            }
            match self.advance(exports, out) {
                Outcome::Continue => {}
                Outcome::Open(export, session) => {
                    self.stage = Stage::Over;
                    return Progress { consumed, state: State::Transmission { export, session } };
                }
                Outcome::Close(reason) => {
                    self.stage = Stage::Over;
                    return Progress { consumed, state: State::Close(reason) };
                }
            }
        }
    }

    /// Moves input into the unit that is being received, or drops it; returns how much.
    fn take(&mut self, input: &[u8]) -> usize {
        if let Stage::Skip { left, .. } = &mut self.stage {
            let dropped = input.len().min(*left as usize);
            *left -= dropped as u32;
            return dropped;
        }
        let missing = self.unit_len() - self.pending.len();
        let taken = missing.min(input.len());
        self.pending.extend_from_slice(&input[..taken]);
        taken
    }

    fn unit_len(&self) -> usize {
        match self.stage {
            Stage::ClientFlags => CLIENT_FLAGS_LEN,
            Stage::OptionHeader => OPTION_HEADER_LEN,
            Stage::OptionData { len, .. } => len as usize,
            Stage::Skip { .. } => 0,
            Stage::Over => panic!("Negotiation::feed was called after the negotiation ended"),
        }
    }

    fn unit_is_complete(&self) -> bool {
        match self.stage {
            Stage::Skip { left, .. } => left == 0,
            _ => self.pending.len() == self.unit_len(),
        }
    }

    /// Handles one complete unit and goes to the next stage.
    fn advance(&mut self, exports: &dyn Exports, out: &mut Vec<u8>) -> Outcome {
        match self.stage {
            Stage::ClientFlags => self.client_flags(),
            Stage::OptionHeader => self.option_header(),
            Stage::Skip { option, error, text, .. } => {
                self.stage = Stage::OptionHeader;
                error_reply(option, error, text, out);
                Outcome::Continue
            }
            Stage::OptionData { option, .. } => {
                self.stage = Stage::OptionHeader;
                let mut data = mem::take(&mut self.pending);
                let outcome = self.option(option, &data, exports, out);
                data.clear();
                self.pending = data;
                outcome
            }
            Stage::Over => unreachable!("unit_len panics first"),
        }
    }

    fn client_flags(&mut self) -> Outcome {
        let flags = read_u32(&self.pending, 0);
        self.pending.clear();
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Outcome::Close(CloseReason::UnknownClientFlags { flags });
        }
        // A client without FIXED_NEWSTYLE may only send EXPORT_NAME; we need not force it to.
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        self.stage = Stage::OptionHeader;
        Outcome::Continue
    }

    fn option_header(&mut self) -> Outcome {
        let magic = read_u64(&self.pending, 0);
        let option = read_u32(&self.pending, 8);
        let len = read_u32(&self.pending, 12);
        self.pending.clear();
        if magic != OPTION_MAGIC {
            return Outcome::Close(CloseReason::BadOptionMagic { got: magic });
        }
        self.options_seen += 1;
        if self.options_seen > OPTIONS_MAX {
            return Outcome::Close(CloseReason::TooManyOptions);
        }
        let too_long = len > OPTION_KEEP_MAX_LEN;
        if len > OPTION_SKIP_MAX_LEN || (too_long && option == OPT_EXPORT_NAME) {
            return Outcome::Close(CloseReason::OptionTooLong { option, len });
        }
        self.stage = if !is_known(option) {
            let text = "this server does not have that option";
            Stage::Skip { option, left: len, error: REP_ERR_UNSUP, text }
        } else if too_long {
            let text = "the data of the option are too long";
            Stage::Skip { option, left: len, error: REP_ERR_TOO_BIG, text }
        } else {
            Stage::OptionData { option, len }
        };
        Outcome::Continue
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let result = match option {
            OPT_EXPORT_NAME => return self.export_name(data, exports, out),
            OPT_ABORT => {
                reply(option, REP_ACK, &[], out);
                return Outcome::Close(CloseReason::Aborted);
            }
            OPT_INFO | OPT_GO => match self.info(option, data, exports, out) {
                Ok(opened) if option == OPT_GO => return opened,
                result => result.map(|_| ()),
            },
            OPT_LIST => list(data, exports, out),
            OPT_STRUCTURED_REPLY => self.structured_reply(data, out),
            OPT_LIST_META_CONTEXT => list_contexts(data, exports, out),
            OPT_SET_META_CONTEXT => self.set_contexts(data, exports, out),
            OPT_STARTTLS if data.is_empty() => Err(Denial {
                error: REP_ERR_POLICY,
                text: "this server does not offer TLS".to_owned(),
            }),
            OPT_STARTTLS => Err(Denial::invalid("STARTTLS takes no data")),
            _ => unreachable!("option {option} is known but has no handler"),
        };
        if let Err(denial) = result {
            error_reply(option, denial.error, &denial.text, out);
        }
        Outcome::Continue
    }

    fn export_name(&self, data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Outcome {
        let found = name_from(data).and_then(|name| Ok((name, find(name, exports)?)));
        let (name, export) = match found {
            Ok(found) => found,
            Err(denial) => {
                let name = String::from_utf8_lossy(data);
                let name = clip_text(&name, 256).to_owned();
                return Outcome::Close(CloseReason::ExportRefused { name, text: denial.text });
            }
        };
        let session = self.session(name, &export);
        out.extend_from_slice(&export.size_bytes.to_be_bytes());
        out.extend_from_slice(&export.transmission_flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_PADDING_LEN]);
        }
        Outcome::Open(Box::new(export), session)
    }

    fn info(
        &self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Outcome, Denial> {
        let mut fields = Fields { data };
        let name = fields.string()?;
        let count = usize::from(fields.u16()?);
        let mut wants_name = false;
        let mut wants_description = false;
        for _ in 0..count {
            match fields.u16()? {
                INFO_NAME => wants_name = true,
                INFO_DESCRIPTION => wants_description = true,
                _ => {} // EXPORT and BLOCK_SIZE are always sent; unknown ones are ignored.
            }
        }
        fields.end()?;
        let export = find(name, exports)?;

        let mut body = Vec::with_capacity(16);
        body.extend_from_slice(&INFO_EXPORT.to_be_bytes());
        body.extend_from_slice(&export.size_bytes.to_be_bytes());
        body.extend_from_slice(&export.transmission_flags(self.structured).to_be_bytes());
        reply(option, REP_INFO, &body, out);

        body.clear();
        body.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
        body.extend_from_slice(&export.block_size_min.to_be_bytes());
        body.extend_from_slice(&export.block_size_preferred.to_be_bytes());
        body.extend_from_slice(&export.payload_max_bytes.to_be_bytes());
        reply(option, REP_INFO, &body, out);

        for (wanted, kind, text) in [
            (wants_name, INFO_NAME, &export.name),
            (wants_description, INFO_DESCRIPTION, &export.description),
        ] {
            if wanted {
                body.clear();
                body.extend_from_slice(&kind.to_be_bytes());
                body.extend_from_slice(text.as_bytes());
                reply(option, REP_INFO, &body, out);
            }
        }
        reply(option, REP_ACK, &[], out);
        let session = self.session(name, &export);
        Ok(Outcome::Open(Box::new(export), session))
    }

    /// Contexts count only for the export that they were chosen for, under the same name. They
    /// can be chosen only after structured replies.
    fn session(&self, name: &str, export: &Export) -> Session {
        let chosen = self.context_for.as_deref() == Some(name);
        Session::new(export, self.structured, chosen.then_some(BASE_ALLOCATION_ID))
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Denial> {
        if !data.is_empty() {
            return Err(Denial::invalid("STRUCTURED_REPLY takes no data"));
        }
        self.structured = true;
        reply(OPT_STRUCTURED_REPLY, REP_ACK, &[], out);
        Ok(())
    }

    fn set_contexts(
        &mut self,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<(), Denial> {
        // A new choice replaces the old one even when it fails.
        self.context_for = None;
        if !self.structured {
            return Err(Denial::invalid("SET_META_CONTEXT needs STRUCTURED_REPLY first"));
        }
        let query = ContextQuery::parse(data)?;
        find(query.name, exports)?;
        if query.names_base_allocation {
            self.context_for = Some(query.name.to_owned());
            context_reply(OPT_SET_META_CONTEXT, BASE_ALLOCATION_ID, out);
        }
        reply(OPT_SET_META_CONTEXT, REP_ACK, &[], out);
        Ok(())
    }
}

fn is_known(option: u32) -> bool {
    matches!(
        option,
        OPT_EXPORT_NAME
            | OPT_ABORT
            | OPT_LIST
            | OPT_STARTTLS
            | OPT_INFO
            | OPT_GO
            | OPT_STRUCTURED_REPLY
            | OPT_LIST_META_CONTEXT
            | OPT_SET_META_CONTEXT
    )
}

fn find(name: &str, exports: &dyn Exports) -> Result<Export, Denial> {
    let export = exports.lookup(name).map_err(|Refusal { kind, text }| {
        let error = match kind {
            RefusalKind::Unknown => REP_ERR_UNKNOWN,
            RefusalKind::Shutdown => REP_ERR_SHUTDOWN,
            RefusalKind::Policy => REP_ERR_POLICY,
        };
        Denial { error, text }
    })?;
    match export.check() {
        Ok(()) => Ok(export),
        Err(error) => Err(Denial { error: REP_ERR_PLATFORM, text: error.to_string() }),
    }
}

fn list(data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Result<(), Denial> {
    if !data.is_empty() {
        return Err(Denial::invalid("LIST takes no data"));
    }
    exports.list(&mut |name, description| {
        let name = clip_text(name, STRING_MAX_LEN);
        let description = clip_text(description, STRING_MAX_LEN);
        reply_header(OPT_LIST, REP_SERVER, 4 + name.len() + description.len(), out);
        out.extend_from_slice(&(name.len() as u32).to_be_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(description.as_bytes());
    });
    reply(OPT_LIST, REP_ACK, &[], out);
    Ok(())
}

fn list_contexts(data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Result<(), Denial> {
    let query = ContextQuery::parse(data)?;
    find(query.name, exports)?;
    if query.count == 0 || query.names_base_allocation || query.names_base_namespace {
        // In a listing the number means nothing and should be 0.
        context_reply(OPT_LIST_META_CONTEXT, 0, out);
    }
    reply(OPT_LIST_META_CONTEXT, REP_ACK, &[], out);
    Ok(())
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
struct ContextQuery<'a> {
    name: &'a str,
    count: u32,
    names_base_allocation: bool,
    /// `base:`, which stands for all contexts of that namespace in a listing.
    names_base_namespace: bool,
}

impl<'a> ContextQuery<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, Denial> {
        let mut fields = Fields { data };
        let name = fields.string()?;
        let count = fields.u32()?;
        let mut query =
            Self { name, count, names_base_allocation: false, names_base_namespace: false };
        for _ in 0..count {
            // Ends at the end of the data at the latest, whatever the count says.
            match fields.string()? {
                BASE_ALLOCATION => query.names_base_allocation = true,
                "base:" => query.names_base_namespace = true,
                _ => {} // Contexts that we do not know are ignored.
            }
        }
        fields.end()?;
        Ok(query)
    }
}

/// Reads the fields of option data one after the other.
struct Fields<'a> {
    data: &'a [u8],
}

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Denial> {
        let Some((taken, rest)) = self.data.split_at_checked(len) else {
            return Err(Denial::invalid("the data of the option end too early"));
        };
        self.data = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Denial> {
        Ok(read_u16(self.bytes(2)?, 0))
    }

    fn u32(&mut self) -> Result<u32, Denial> {
        Ok(read_u32(self.bytes(4)?, 0))
    }

    fn string(&mut self) -> Result<&'a str, Denial> {
        let len = self.u32()?;
        name_from(self.bytes(len as usize)?)
    }

    fn end(&self) -> Result<(), Denial> {
        if self.data.is_empty() {
            return Ok(());
        }
        Err(Denial::invalid("the data of the option are longer than their fields"))
    }
}

fn name_from(bytes: &[u8]) -> Result<&str, Denial> {
    if bytes.len() > STRING_MAX_LEN {
        return Err(Denial::invalid("a string is longer than 4096 bytes"));
    }
    if bytes.contains(&0) {
        return Err(Denial::invalid("a string holds a NUL byte"));
    }
    std::str::from_utf8(bytes).map_err(|_| Denial::invalid("a string is not UTF-8"))
}

fn context_reply(option: u32, id: u32, out: &mut Vec<u8>) {
    reply_header(option, REP_META_CONTEXT, 4 + BASE_ALLOCATION.len(), out);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(BASE_ALLOCATION.as_bytes());
}

fn error_reply(option: u32, error: u32, text: &str, out: &mut Vec<u8>) {
    reply(option, error, clip_text(text, STRING_MAX_LEN).as_bytes(), out);
}

fn reply(option: u32, kind: u32, body: &[u8], out: &mut Vec<u8>) {
    reply_header(option, kind, body.len(), out);
    out.extend_from_slice(body);
}

fn reply_header(option: u32, kind: u32, body_len: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(body_len as u32).to_be_bytes());
}
