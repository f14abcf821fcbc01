package engine

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

func clientWith(t *testing.T, c Credentials, s TLS, http2 string) *Client {
	t.Helper()
	a, err := NewAccess(c, s)
	if err != nil {
		t.Fatal(err)
	}
	client := NewClient(Options{Access: a, HTTP2: http2})
	t.Cleanup(client.Close)
	return client
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCredentialsAreShownEverywhere(t *testing.T) {
	t.Setenv("PENSTOCK_TEST_KEY", "sk-1 \n")
	for name, f := range map[string]struct {
		c            Credentials
		header, want string
	}{
		"a word is a bearer token":       {Credentials{Env: "PENSTOCK_TEST_KEY"}, "Authorization", "Bearer sk-1"},
		"a scheme of its own":            {Credentials{File: write(t, "key", "Basic abc=\n")}, "Authorization", "Basic abc="},
		"another header takes it as is":  {Credentials{Header: "x-api-key", Env: "PENSTOCK_TEST_KEY"}, "X-Api-Key", "sk-1"},
		"nothing is shown without a key": {Credentials{Header: "Authorization"}, "Authorization", ""},
	} {
		var got []string
		base := serve(t, func(w http.ResponseWriter, r *http.Request) {
			got = append(got, r.Header.Get(f.header))
			_, _ = io.WriteString(w, `{"data":[{"id":"m"}]}`)
		})
		c := clientWith(t, f.c, TLS{}, "")
		if resp, _, err := c.Send(t.Context(), base, "/v1/x", http.Header{}, nil); err != nil {
			t.Fatal(err)
		} else {
			resp.Body.Close()
		}
		if _, err := c.Models(t.Context(), base); err != nil {
			t.Error(err)
		}
		if err := c.Healthy(t.Context(), mustDialect("vllm"), base); err != nil {
			t.Error(err)
		}
		if len(got) != 3 || got[0] != f.want || got[1] != f.want || got[2] != f.want {
			t.Errorf("%s: engine saw %q, want %q", name, got, f.want)
		}
	}
}

func TestCredentialsAreRefused(t *testing.T) {
	t.Setenv("PENSTOCK_TEST_EMPTY", " ")
	for want, c := range map[string]Credentials{
		"PENSTOCK_TEST_EMPTY is empty": {Env: "PENSTOCK_TEST_EMPTY"},
		"no such file":                 {File: filepath.Join(t.TempDir(), "none")},
		"more than one line":           {File: write(t, "key", "sk-secret\r\nX-Evil: 1")},
	} {
		_, err := NewAccess(c, TLS{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sk-secret") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for _, h := range []string{"host", "Content-Length", "X-Request-Id"} {
		if errs := (Credentials{Header: h, Env: "X"}).Validate(); len(errs) != 1 {
			t.Errorf("%s: %v", h, errs)
		}
	}
}

func TestSecretIsReadAgain(t *testing.T) {
	path := write(t, "key", "one")
	s := &secret{file: path}
	get := func() string {
		v, err := s.value()
		if err != nil {
			t.Fatal(err)
		}
		return v[0]
	}
	if get() != "one" {
		t.Error("not read")
	}
	for _, content := range []string{"two", ""} { // empty: it is being written
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if content == "two" && get() != "one" {
			t.Error("read at every request")
		}
		s.read = time.Now().Add(-2 * reread)
		if get() != "two" {
			t.Errorf("with %q in the file: not the last secret", content)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.read = time.Now().Add(-2 * reread)
	if get() != "two" {
		t.Error("a file that is being replaced took the secret away")
	}
}

// authority makes certificates for 127.0.0.1.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.key, a.cert, a.pem = a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

func (a *authority) sign(c *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate, string) {
	a.t.Helper()
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, parsed, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// issue returns the files of a certificate for name.
func (a *authority) issue(name string) (cert, key string) {
	a.t.Helper()
	k, _, p := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return write(a.t, "cert.pem", p), write(a.t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
}

func TestTLSOut(t *testing.T) {
	ca := newAuthority(t)
	caFile := write(t, "ca.pem", ca.pem)
	serverCert, serverKey := ca.issue("engine.internal")
	cert, key := ca.issue("gateway")
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto+" "+r.TLS.PeerCertificates[0].Subject.CommonName+" "+r.TLS.ServerName)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	ours := TLS{CA: caFile, Cert: cert, Key: key, ServerName: "engine.internal"}
	for name, f := range map[string]struct {
		tls   TLS
		http2 string
		want  string // "" for a failure
	}{
		"all in order":              {ours, HTTP2Auto, "HTTP/2.0 gateway engine.internal"},
		"HTTP/1.1 on demand":        {ours, HTTP2Off, "HTTP/1.1 gateway engine.internal"},
		"another name":              {TLS{CA: caFile, Cert: cert, Key: key}, HTTP2Auto, ""},
		"nobody trusts it":          {TLS{Cert: cert, Key: key, ServerName: "engine.internal"}, HTTP2Auto, ""},
		"no certificate of our own": {TLS{CA: caFile, ServerName: "engine.internal"}, HTTP2Auto, ""},
		"trusting anyone":           {TLS{Cert: cert, Key: key, InsecureSkipVerify: true}, HTTP2Auto, "HTTP/2.0 gateway "},
	} {
		resp, failure, err := clientWith(t, Credentials{}, f.tls, f.http2).Send(t.Context(), s.URL, "/", http.Header{}, []byte("{}"))
		if f.want == "" {
			if err == nil || failure != fleet.FailConnect {
				t.Errorf("%s: %v %v", name, failure, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != f.want {
			t.Errorf("%s: %q, want %q", name, body, f.want)
		}
	}
	for want, bad := range map[string]TLS{
		"ca: ":                     {CA: filepath.Join(t.TempDir(), "none")},
		"holds no PEM certificate": {CA: write(t, "ca.pem", "hello")},
		"cert: ":                   {Cert: caFile, Key: caFile},
	} {
		if _, err := NewAccess(Credentials{}, bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestPriorKnowledge(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(w, r.Proto+" ")
		_, _ = w.Write(body)
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	big := bytes.Repeat([]byte("x"), 1<<20)
	for http2, want := range map[string]string{HTTP2Prior: "HTTP/2.0 ", HTTP2Auto: "HTTP/1.1 ", HTTP2Off: "HTTP/1.1 "} {
		resp, _, err := clientWith(t, Credentials{}, TLS{}, http2).Send(t.Context(), s.URL, "/", http.Header{}, big)
		if err != nil {
			t.Errorf("%s: %v", http2, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != want+string(big) {
			t.Errorf("%s: %d bytes, %.9q", http2, len(body), body)
		}
	}
}
