//! TLS to etcd: who signs its certificates, the own one, and what a refusal means. The files are
//! looked at again and again, so new ones are used without a restart; as long as new ones cannot
//! be used, that is told and the former ones stay in use.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use failover_core::etcd::Trouble;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, InvalidMessage, RootCertStore,
};

use super::client::Failure;

/// A file with all certificates of a system has a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Of a key: others read nothing, and the group changes nothing.
const KEY_MODE_FORBIDDEN: u32 = 0o027;

/// The files of `[etcd]`, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who signs the certificates of etcd's members.
    pub ca: PathBuf,
    /// The own certificate and its key, for an etcd that wants one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// A file of `[etcd]` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// Which one.
    pub path: PathBuf,
    /// Why, with the key and the path.
    pub why: String,
    /// What an operator may do.
    pub next: String,
}

impl From<FileProblem> for Trouble {
    fn from(FileProblem { why, next, .. }: FileProblem) -> Self {
        Trouble { code: "file".into(), why, next }
    }
}

/// What is in the files.
#[derive(PartialEq, Eq)]
struct Contents {
    ca: Vec<u8>,
    own: Option<(Vec<u8>, Vec<u8>)>,
}

/// What is shown to the other side, and whom this one believes.
#[derive(Clone)]
pub(super) struct Credentials {
    /// Counts the changes of the files.
    pub generation: u64,
    connector: TlsConnector,
}

#[derive(Default)]
struct Loaded {
    /// As it was read last: nothing happens until it changes.
    seen: Option<Result<Contents, FileProblem>>,
    credentials: Option<Credentials>,
    trouble: Option<FileProblem>,
}

/// The files, and what was made of them.
pub(super) struct Tls {
    files: TlsFiles,
    loaded: Mutex<Loaded>,
}

impl Tls {
    pub(super) fn new(files: TlsFiles) -> Self {
        Self { files, loaded: Mutex::default() }
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files, elsewhere than on this thread: a disk that hangs delays no renewal.
    pub(super) async fn reload(&self) {
        let files = self.files.clone();
        let Ok(found) = tokio::task::spawn_blocking(move || files.read()).await else { return };
        let mut loaded = self.loaded();
        if loaded.seen.as_ref() == Some(&found) {
            return;
        }
        let made = found.as_ref().map_err(Clone::clone).and_then(|it| self.files.connector(it));
        match made {
            Ok(connector) => {
                let generation = loaded.credentials.as_ref().map_or(0, |it| it.generation) + 1;
                loaded.credentials = Some(Credentials { generation, connector });
                loaded.trouble = None;
            }
            Err(problem) => {
                tracing::warn!("[etcd] {}; {}", problem.why, problem.next);
                loaded.trouble = Some(problem);
            }
        }
        loaded.seen = Some(found);
    }

    /// Why the files cannot be used as they are now.
    pub(super) fn trouble(&self) -> Option<FileProblem> {
        self.loaded().trouble.clone()
    }

    /// What the newest usable files give.
    pub(super) fn credentials(&self) -> Result<Credentials, Failure> {
        let loaded = self.loaded();
        match (&loaded.credentials, &loaded.trouble) {
            (Some(found), _) => Ok(found.clone()),
            (None, Some(problem)) => Err(Failure::File(problem.clone())),
            (None, None) => Err(Failure::NotSent("the certificates are not read yet".into())),
        }
    }

    /// Verifies the other side by its address; it may verify this one a little later.
    pub(super) async fn connect(
        &self,
        credentials: &Credentials,
        address: SocketAddr,
        socket: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let name = ServerName::IpAddress(address.ip().into());
        credentials.connector.connect(name, socket).await.map_err(|error| {
            let failure = self.failure(&error);
            failure.unwrap_or_else(|| Failure::NotSent(format!("TLS failed: {error}")))
        })
    }

    /// What an error means, if it is one of TLS before anything was asked.
    pub(super) fn failure(&self, error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
        let (why, next) = match tls_error(error)? {
            Error::InvalidCertificate(problem) => self.in_words(problem),
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => (
                "it does not speak TLS".to_owned(),
                "look whether that member has --cert-file, or write http:// for all of them".into(),
            ),
            Error::AlertReceived(alert) => self.refused(*alert)?,
            _ => return None,
        };
        Some(Failure::Tls { why, next })
    }

    /// What is wrong with the certificate of a member.
    fn in_words(&self, problem: &CertificateError) -> (String, String) {
        let ca = self.files.ca.display();
        let renew = "renew the certificate of that member, and look at the clocks";
        let (why, next) = match problem {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                format!("its certificate is not signed by the CA in {ca}"),
                "name in `ca` of [etcd] the CA of etcd's --cert-file".to_owned(),
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                ("its certificate has expired".into(), renew.into())
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                ("its certificate is not valid yet".into(), renew.into())
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
                "its certificate is not for this address".into(),
                "sign one with this address in subjectAltName (IP:...), and give it to etcd as \
                 --cert-file"
                    .into(),
            ),
            other => (format!("its certificate is refused: {other}"), renew.into()),
        };
        (why, next)
    }

    /// What etcd has against the own certificate. Only before it has taken anything from us.
    fn refused(&self, alert: AlertDescription) -> Option<(String, String)> {
        use AlertDescription as Alert;
        let (Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::CertificateRequired
        | Alert::UnknownCA
        | Alert::AccessDenied
        | Alert::HandshakeFailure
        | Alert::DecryptError
        | Alert::ProtocolVersion) = alert
        else {
            return None;
        };
        Some(match &self.files.own {
            None => (
                format!("it refuses us without a certificate ({alert:?})"),
                "write certificate and key into [etcd], signed by the CA of etcd's \
                 --trusted-ca-file"
                    .into(),
            ),
            Some((path, _)) => (
                format!("it refuses the certificate {} ({alert:?})", path.display()),
                format!(
                    "look at its dates and its issuer, which must be in etcd's --trusted-ca-file: \
                     openssl x509 -noout -dates -issuer -in {}",
                    path.display()
                ),
            ),
        })
    }
}

/// The error of TLS within an error of hyper or of the socket.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<Error>() {
            return Some(found);
        }
        // An io::Error gives as its source that of the error within.
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = within.and_then(|it| it.downcast_ref::<Error>()) {
            return Some(found);
        }
        next = match within {
            Some(within) => within.source(),
            None => error.source(),
        };
    }
    None
}

impl TlsFiles {
    fn read(&self) -> Result<Contents, FileProblem> {
        let own = match &self.own {
            Some((certificate, key)) => {
                Some((read("certificate", certificate, 0)?, read("key", key, KEY_MODE_FORBIDDEN)?))
            }
            None => None,
        };
        Ok(Contents { ca: read("ca", &self.ca, 0)?, own })
    }

    fn connector(&self, contents: &Contents) -> Result<TlsConnector, FileProblem> {
        let mut roots = RootCertStore::empty();
        for one in certificates("ca", &self.ca, &contents.ca)? {
            roots.add(one).map_err(|error| no_pem("ca", &self.ca, &error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots);
        let mut config = match (&self.own, &contents.own) {
            (Some((path, key_path)), Some((chain, key))) => {
                let chain = certificates("certificate", path, chain)?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
                    PemError::NoItemsFound => {
                        no_pem("key", key_path, &"no private key without a passphrase is in it")
                    }
                    error => no_pem("key", key_path, &error),
                })?;
                builder.with_client_auth_cert(chain, key).map_err(|error| match error {
                    Error::InconsistentKeys(_) => FileProblem {
                        path: key_path.clone(),
                        why: format!(
                            "key {}: it does not belong to the certificate {}",
                            key_path.display(),
                            path.display()
                        ),
                        next: "put both files of one pair there".into(),
                    },
                    error => no_pem("key", key_path, &error),
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        // Every connection proves both sides anew.
        config.resumption = Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn certificates(
    name: &str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, FileProblem> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| no_pem(name, path, &error))?;
    if found.is_empty() {
        return Err(no_pem(name, path, &"no certificate is in it"));
    }
    Ok(found)
}

fn no_pem(name: &str, path: &Path, why: &dyn std::fmt::Display) -> FileProblem {
    FileProblem {
        path: path.to_owned(),
        why: format!("{name} {}: {why}", path.display()),
        next: format!(
            "put {} there in PEM, whose first line is -----BEGIN ...-----",
            match name {
                "key" => "the private key of the certificate",
                _ => "certificates",
            }
        ),
    }
}

fn read(name: &str, path: &Path, forbidden: u32) -> Result<Vec<u8>, FileProblem> {
    let problem = |why: String, next: String| FileProblem {
        path: path.to_owned(),
        why: format!("{name} {}: {why}", path.display()),
        next,
    };
    let failed = |error: io::Error| {
        let next = format!("put the file there, readable for replicatord, or correct `{name}`");
        problem(error.to_string(), next)
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & forbidden != 0 {
        let why = format!("it has mode {mode:04o}, so that others can read or change it");
        return Err(problem(why, format!("run `chmod 0600 {}`", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
