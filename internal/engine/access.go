package engine

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// Credentials say what the gateway shows engines. The secret itself is never
// written here: it comes from the environment or a file.
type Credentials struct {
	// Header carries the secret. Under Authorization a secret of one word is sent
	// as a bearer token; anything else goes as it is.
	Header string `json:"header"`
	// Env names the environment variable that holds the secret.
	Env string `json:"env"`
	// File holds the secret; it is read again when it changes.
	File string `json:"file"`
}

// TLS says how https endpoints are trusted and met.
type TLS struct {
	// CA is a PEM file of the authorities trusted instead of the system's.
	CA string `json:"ca"`
	// Cert is a PEM file with the gateway's own certificate, read again when it
	// changes.
	Cert string `json:"cert"`
	// Key is the PEM file with its key.
	Key string `json:"key"`
	// InsecureSkipVerify trusts any certificate. For tests only.
	InsecureSkipVerify bool `json:"insecureSkipVerify"`
	// ServerName is what the engine's certificate must name; the URL's host by
	// default.
	ServerName string `json:"serverName"`
}

// The values of Options.HTTP2.
const (
	HTTP2Auto  = "auto"  // HTTP/2 where TLS agrees on it, HTTP/1.1 in clear text
	HTTP2Off   = "off"   // HTTP/1.1
	HTTP2Prior = "prior" // HTTP/2 without asking, also in clear text (h2c)
)

// CheckHTTP2 refuses what Options.HTTP2 does not know.
func CheckHTTP2(v string) error {
	switch v {
	case "", HTTP2Auto, HTTP2Off, HTTP2Prior:
		return nil
	}
	return fmt.Errorf("must be auto, off or prior, is %q", v)
}

// Validate returns what is wrong with c, field by field. It does not look for
// the secret.
func (c Credentials) Validate() []error {
	var errs []error
	if c.Env != "" && c.File != "" {
		errs = append(errs, errors.New("file: give env or file, not both"))
	}
	if c.Env == "" && c.File == "" && c.Header != "" && c.Header != DefaultHeader {
		errs = append(errs, errors.New("header: there is no secret to send: name its env or file"))
	}
	if (c.Env != "" || c.File != "") && !isToken(c.Header) {
		errs = append(errs, fmt.Errorf("header: %q is no header's name", c.Header))
	}
	switch http.CanonicalHeaderKey(c.Header) {
	case "Host", "Content-Length", "Content-Type", "Connection", "Transfer-Encoding", "X-Request-Id":
		errs = append(errs, fmt.Errorf("header: %s carries something else", c.Header))
	}
	return errs
}

// DefaultHeader is the header that carries credentials when no other is named.
const DefaultHeader = "Authorization"

func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return s != ""
}

// Validate returns what is wrong with t, field by field. It does not look at
// the files.
func (t TLS) Validate() []error {
	var errs []error
	if (t.Cert == "") != (t.Key == "") {
		errs = append(errs, errors.New("cert: a certificate and its key go together"))
	}
	if t.InsecureSkipVerify && t.CA != "" {
		errs = append(errs, errors.New("insecureSkipVerify: trusts anyone, so that ca has no effect: drop one"))
	}
	return errs
}

// Access is how a client of engines proves who it is and whom it trusts.
type Access struct {
	header string
	secret *secret // nil for none
	tls    *tls.Config
}

// NewAccess reads what c and t name, so that a mistake shows at once.
func NewAccess(c Credentials, t TLS) (*Access, error) {
	a := &Access{header: http.CanonicalHeaderKey(c.Header)}
	if a.header == "" {
		a.header = DefaultHeader
	}
	if c.Env != "" || c.File != "" {
		a.secret = &secret{env: c.Env, file: c.File, bearer: a.header == DefaultHeader}
		if _, err := a.secret.value(); err != nil {
			return nil, fmt.Errorf("credentials: %w", err)
		}
	}
	var err error
	if a.tls, err = t.config(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return a, nil
}

// apply adds the secret to a request's header.
func (a *Access) apply(h http.Header) error {
	if a == nil || a.secret == nil {
		return nil
	}
	v, err := a.secret.value()
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	h[a.header] = v
	return nil
}

// reread is how often files of secrets and certificates are looked at again.
const reread = 10 * time.Second

// secret is a header's value that may change while we run.
type secret struct {
	env, file string
	bearer    bool

	mu     sync.Mutex
	read   time.Time
	header []string // shared by requests, never written
}

// value returns the header's values. A file that cannot be read any more leaves
// the last secret in place: it may be being replaced.
func (s *secret) value() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.header != nil && (s.file == "" || time.Since(s.read) < reread) {
		return s.header, nil
	}
	s.read = time.Now()
	raw, from := os.Getenv(s.env), "environment variable "+s.env
	if s.file != "" {
		b, err := os.ReadFile(s.file)
		if err != nil && s.header == nil {
			return nil, err
		}
		if err != nil {
			return s.header, nil
		}
		raw, from = string(b), s.file
	}
	raw = strings.TrimSpace(raw)
	switch {
	case raw == "" && s.header != nil:
		return s.header, nil
	case raw == "":
		return nil, fmt.Errorf("%s is empty or not set", from)
	case strings.ContainsFunc(raw, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return nil, fmt.Errorf("%s holds more than one line", from)
	}
	if s.bearer && !strings.Contains(raw, " ") {
		raw = "Bearer " + raw
	}
	s.header = []string{raw}
	return s.header, nil
}

// config returns the TLS configuration of t.
func (t TLS) config() (*tls.Config, error) {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: t.ServerName,
		InsecureSkipVerify: t.InsecureSkipVerify, //nolint:gosec // the operator asked for it, by that name
	}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s holds no PEM certificate", t.CA)
		}
	}
	if t.Cert != "" {
		p := &pair{cert: t.Cert, key: t.Key}
		if _, err := p.load(nil); err != nil {
			return nil, fmt.Errorf("cert: %w", err)
		}
		c.GetClientCertificate = p.load
	}
	return c, nil
}

// pair is a certificate and key that may be renewed while we run.
type pair struct {
	cert, key string

	mu      sync.Mutex
	read    time.Time
	current *tls.Certificate
}

func (p *pair) load(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil && time.Since(p.read) < reread {
		return p.current, nil
	}
	p.read = time.Now()
	c, err := tls.LoadX509KeyPair(p.cert, p.key)
	switch {
	case err == nil:
		p.current = &c
	case p.current == nil:
		return nil, err
	}
	return p.current, nil // while the files are being replaced the last pair stands
}
