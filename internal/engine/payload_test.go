package engine

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestPayloadIsHeldUntilRead sends a body to an engine that answers before it
// has read it, and one that reads it whole: the memory comes back once, and not
// before the last reader has let go.
func TestPayloadIsHeldUntilRead(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	got := make(chan bool, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		got <- err == nil && bytes.Equal(b, want)
	}))
	defer s.Close()
	freed := make(chan struct{})
	p := NewPayload(want, func() { close(freed) })
	resp, _, err := newClient(t).Post(t.Context(), s.URL, "/", http.Header{}, p)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if !<-got {
		t.Error("the engine got another body")
	}
	select {
	case <-freed:
		t.Fatal("freed while its maker holds it")
	default:
	}
	p.Release()
	<-freed
}

func TestPayloadReaders(t *testing.T) {
	freed := 0
	p := NewPayload([]byte("abc"), func() { freed++ })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", nil)
	if err != nil {
		t.Fatal(err)
	}
	p.putInto(req)
	if b, err := io.ReadAll(req.Body); string(b) != "abc" || err != nil || req.ContentLength != 3 {
		t.Errorf("%q, %v, length %d", b, err, req.ContentLength)
	}
	again, err := req.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	req.Body.Close()
	req.Body.Close() // a second Close is not a second holder's
	p.Release()
	if b, err := io.ReadAll(again); string(b) != "abc" || err != nil || freed != 0 {
		t.Errorf("%q, %v, freed %d times before the last reader closed", b, err, freed)
	}
	again.Close()
	if _, err := again.Read(make([]byte, 1)); err == nil || freed != 1 {
		t.Errorf("read after close: %v; freed %d times", err, freed)
	}
}
