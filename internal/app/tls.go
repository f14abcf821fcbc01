package app

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// TLS says how the public port is encrypted; the zero value is clear text.
type TLS struct {
	Cert, Key string // files; read again when they change
	ClientCA  string // file; when set, clients must show a certificate of it
}

// Enabled reports whether there is a certificate.
func (t TLS) Enabled() bool { return t.Cert != "" }

// config returns the server's TLS configuration. Errors name the flags, which
// begin with flag.
func (t TLS) config(flag string, log *slog.Logger) (*tls.Config, error) {
	if (t.Cert == "") != (t.Key == "") {
		return nil, fmt.Errorf("%[1]s-cert and %[1]s-key go together", flag)
	}
	if t.Cert == "" {
		if t.ClientCA != "" {
			return nil, fmt.Errorf("%[1]s-client-ca needs %[1]s-cert and %[1]s-key", flag)
		}
		return nil, nil
	}
	k := &keyPair{files: t, flag: flag, log: log}
	if err := k.load(); err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: k.get}
	if t.ClientCA != "" {
		pem, err := os.ReadFile(t.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("%s-client-ca: %w", flag, err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s-client-ca: %s holds no PEM certificate", flag, t.ClientCA)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}

// keyPair is a certificate that follows its files.
type keyPair struct {
	files TLS
	flag  string
	log   *slog.Logger

	mu      sync.Mutex
	cert    *tls.Certificate
	stamp   [2]time.Time // modification times of cert and key when loaded
	checked time.Time
}

// checkEvery is how often the files are looked at, at most.
const checkEvery = time.Second

func (k *keyPair) load() error {
	stamp := k.stamps()
	cert, err := tls.LoadX509KeyPair(k.files.Cert, k.files.Key)
	if err != nil {
		return fmt.Errorf("%[1]s-cert, %[1]s-key: %[2]w", k.flag, err)
	}
	k.cert, k.stamp = &cert, stamp
	return nil
}

func (k *keyPair) stamps() (s [2]time.Time) {
	for i, path := range []string{k.files.Cert, k.files.Key} {
		if info, err := os.Stat(path); err == nil {
			s[i] = info.ModTime()
		}
	}
	return s
}

// get returns the certificate for a handshake, loaded again if its files have
// changed. A pair that cannot be read, or does not match yet, leaves the old one
// in service.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); now.Sub(k.checked) >= checkEvery {
		k.checked = now
		if s := k.stamps(); s != k.stamp {
			if err := k.load(); err != nil {
				k.log.Warn("the new certificate cannot be used; the old one stays", "err", err)
			} else {
				k.log.Info("certificate loaded again")
			}
		}
	}
	return k.cert, nil
}

// bounded is a listener that holds at most so many connections open; further
// ones wait in the kernel's queue.
type bounded struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	once   sync.Once
}

func boundListener(l net.Listener, n int) net.Listener {
	if n <= 0 {
		return l
	}
	return &bounded{Listener: l, places: make(chan struct{}, n), closed: make(chan struct{})}
}

// Accept waits for a place, then for a connection.
func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.places <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.places
		return nil, err
	}
	return &boundedConn{Conn: c, free: sync.OnceFunc(func() { <-b.places })}, nil
}

// Close stops accepting.
func (b *bounded) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

type boundedConn struct {
	net.Conn
	free func()
}

// Close gives the place back.
func (c *boundedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
