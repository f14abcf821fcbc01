package transfer

import (
	"fmt"
	"io"
	"net/http"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
)

// blobs are bytes that instances leave for their peers: an agent's metadata, so
// that a handshake can be made before the first request. Nobody here reads them.
// They go with the incarnation that left them.
type blobs struct {
	of    map[string]map[string][]byte // instance, name
	bytes int
}

// Bounds of all blobs, and of one instance's.
const (
	allBlobBytes      = 256 << 20
	instanceBlobBytes = 16 << 20
	instanceBlobs     = exchange.MaxRanks
)

// put stores a blob in place of an earlier one of its name.
func (b *blobs) put(instance, name string, data []byte) error {
	own := b.of[instance]
	if own == nil {
		own = map[string][]byte{}
	}
	mine := 0
	for _, d := range own {
		mine += len(d)
	}
	old, there := own[name]
	grown := len(data) - len(old)
	if mine+grown > instanceBlobBytes || b.bytes+grown > allBlobBytes || !there && len(own) >= instanceBlobs {
		return fmt.Errorf("%w: blobs of an instance may have %d MB, and all %d", exchange.ErrFull, instanceBlobBytes>>20, allBlobBytes>>20)
	}
	own[name], b.of[instance] = data, own
	b.bytes += grown
	return nil
}

// drop takes out all of an instance's.
func (b *blobs) drop(instance string) {
	for _, d := range b.of[instance] {
		b.bytes -= len(d)
	}
	delete(b.of, instance)
}

// incarnationHeader tells whose life a blob is of.
const incarnationHeader = "Penstock-Incarnation"

// present returns the incarnation of an instance, which must be the one that is
// wanted, if one is.
func present(b *exchange.Book, id, want string) (string, error) {
	e, ok := b.Find(id)
	switch {
	case !ok:
		return "", fmt.Errorf("%w: %q", exchange.ErrUnknown, id)
	case want != "" && want != e.Incarnation:
		return "", fmt.Errorf("%w: %q is now incarnation %q, not %q", exchange.ErrStale, id, e.Incarnation, want)
	}
	return e.Incarnation, nil
}

// blobName is the name of the blob that a request is for.
func blobName(r *http.Request) (string, error) {
	name := r.URL.Query().Get("name")
	if name == "" {
		name = "agent"
	}
	if err := exchange.Text(name, true); err != nil {
		return "", fmt.Errorf("name: %w", err)
	}
	return name, nil
}

func (s *Server) putBlob(w http.ResponseWriter, r *http.Request) {
	name, err := blobName(r)
	if err == nil && r.URL.Query().Get("incarnation") == "" {
		err = fmt.Errorf("incarnation: is missing: a blob is of one life")
	}
	var data []byte
	if err == nil {
		data, err = io.ReadAll(r.Body)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.Do(func(_ fleet.Time, b *exchange.Book) {
		if _, err = present(b, r.PathValue("instance"), r.URL.Query().Get("incarnation")); err == nil {
			err = s.blobs.put(r.PathValue("instance"), name, data)
		}
	})
	if err != nil {
		s.refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) getBlob(w http.ResponseWriter, r *http.Request) {
	name, err := blobName(r)
	if err != nil {
		s.refuse(w, err)
		return
	}
	var incarnation string
	var data []byte
	found := false
	s.Do(func(_ fleet.Time, b *exchange.Book) {
		if incarnation, err = present(b, r.PathValue("instance"), r.URL.Query().Get("incarnation")); err == nil {
			data, found = s.blobs.of[r.PathValue("instance")][name]
		}
	})
	switch {
	case err != nil:
		s.refuse(w, err)
	case !found:
		fail(w, http.StatusNotFound, fmt.Errorf("instance %q has left no blob %q", r.PathValue("instance"), name))
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set(incarnationHeader, incarnation)
		_, _ = w.Write(data) // the reader may have gone
	}
}
