package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"penstock.dev/penstock/internal/stat"
)

// embeddingBytes is how much an encoded image is: imageTokens of 4096 numbers of
// two bytes.
const embeddingBytes = imageTokens * 4096 * 2

// maxEmbeddings is how many encoded images an engine keeps.
const maxEmbeddings = 1024

// encodedAt is where an encoded image is, as vLLM's EC connector tells it.
type encodedAt struct {
	Host  string `json:"peer_host"`
	Port  int    `json:"peer_port"`
	Size  int    `json:"size_bytes"`
	Agent string `json:"nixl_agent_metadata_b64"`
}

// sight is the images of a request.
type sight struct {
	hashes []string
	at     map[string]encodedAt // those that somebody has encoded
}

// ImageCounts says what an engine has had to do with images.
type ImageCounts struct {
	Encoded int `json:"encoded"` // here
	Fetched int `json:"fetched"` // from those who had encoded them
	Missed  int `json:"missed"`  // that should have been fetched, and were encoded here
	Wrong   int `json:"wrong"`   // of those missed, the embedding of another image
	Served  int `json:"served"`  // to others
}

// eyes are what an engine encodes images with, one at a time.
type eyes struct {
	client *http.Client

	mu         sync.Mutex
	free       time.Time // when those that wait have been encoded
	has        map[string]struct{}
	counts     ImageCounts
	host       string
	port       int
	embeddings []string // in the order in which they came
}

func newEyes() *eyes {
	return &eyes{client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, has: map[string]struct{}{}}
}

// serveAt tells others where to fetch.
func (e *eyes) serveAt(a net.Addr) {
	if tcp, ok := a.(*net.TCPAddr); ok {
		e.mu.Lock()
		e.host, e.port = tcp.IP.String(), tcp.Port
		e.mu.Unlock()
	}
}

// keep notes that an image's embedding is here.
func (e *eyes) keep(hash string, count *int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	*count++
	if _, ok := e.has[hash]; ok {
		return
	}
	if len(e.embeddings) == maxEmbeddings {
		delete(e.has, e.embeddings[0])
		e.embeddings = e.embeddings[1:]
	}
	e.has[hash] = struct{}{}
	e.embeddings = append(e.embeddings, hash)
}

func (e *eyes) know(hash string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.has[hash]
	return ok
}

// imageHash stands for an image by its address, that is by its bytes when they are
// in a data URL.
func imageHash(url string) string { return fmt.Sprintf("%016x", xxhash.Sum64String(url)) }

// embeddingOf is the only embedding that an image has.
func embeddingOf(hash string) string {
	return fmt.Sprintf("%016x", stat.Mix64(xxhash.Sum64String(hash)))
}

// sightOf finds the images of a conversation, each once.
func sightOf(list []message, at map[string]encodedAt) *sight {
	v := &sight{at: at}
	seen := map[string]bool{}
	for _, m := range list {
		var parts []struct {
			Type     string
			ImageURL struct{ URL string } `json:"image_url"`
		}
		if len(m.Content) == 0 || m.Content[0] != '[' || json.Unmarshal(m.Content, &parts) != nil {
			continue
		}
		for _, p := range parts {
			if h := imageHash(p.ImageURL.URL); p.Type == "image_url" && !seen[h] {
				seen[h] = true
				v.hashes = append(v.hashes, h)
			}
		}
	}
	if len(v.hashes) == 0 {
		return nil
	}
	return v
}

// see has the images of a request encoded: by those who say that they have them,
// else here.
func (s *Server) see(ctx context.Context, choices []choice) error {
	if len(choices) == 0 || choices[0].sight == nil || choices[0].move.takesOver() {
		return nil
	}
	e, v := s.eyes, choices[0].sight
	for _, hash := range v.hashes {
		if e.know(hash) {
			continue
		}
		if at, ok := v.at[hash]; ok {
			err := s.fetchEmbedding(ctx, at, hash)
			if err == nil {
				e.keep(hash, &e.counts.Fetched)
				continue
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			e.mu.Lock()
			e.counts.Missed++
			if errors.Is(err, errWrongEmbedding) {
				e.counts.Wrong++
			}
			e.mu.Unlock()
		}
		if err := sleep(ctx, s.encodeFor(time.Now())); err != nil {
			return err
		}
		e.keep(hash, &e.counts.Encoded)
	}
	return nil
}

// takesOver reports whether the KV of the prompt comes from who has computed it: then
// nobody looks at its images again.
func (m *move) takesOver() bool { return m != nil && !m.keep && m.name+m.from.Host != "" }

// encodeFor books an image and says when it will have been encoded.
func (s *Server) encodeFor(now time.Time) time.Duration {
	e := s.eyes
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.free.Before(now) {
		e.free = now
	}
	e.free = e.free.Add(time.Duration(float64(s.options.EncodeTime) / s.options.Speedup))
	return e.free.Sub(now)
}

var errWrongEmbedding = errors.New("this is the embedding of another image")

// embedding is what goes from one engine to another in place of an image's numbers.
type embedding struct {
	Embedding string `json:"embedding"`
}

// embeddingTimeout bounds the wait for one who has an image and does not answer.
const embeddingTimeout = 2 * time.Second

// fetchEmbedding fetches an embedding, and holds it to the image that it must be of.
func (s *Server) fetchEmbedding(parent context.Context, at encodedAt, hash string) error {
	ctx, end := s.within(parent, embeddingTimeout)
	defer end()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(at.Host, strconv.Itoa(at.Port))+"/sim/embeddings/"+hash, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := s.eyes.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var got embedding
	switch err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&got); {
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s", resp.Status)
	case err != nil:
		return err
	case got.Embedding != embeddingOf(hash):
		return errWrongEmbedding
	}
	return nil
}

// sendEmbedding hands an encoded image out.
func (s *Server) sendEmbedding(w http.ResponseWriter, r *http.Request) {
	hash := r.PathValue("hash")
	_, lost := s.faults.hit("ec-lost", false)
	_, wrong := s.faults.hit("ec-wrong", false)
	if lost || !s.eyes.know(hash) {
		s.fail(w, r, &apiError{http.StatusNotFound, "no such image has been encoded here", ""})
		return
	}
	s.eyes.mu.Lock()
	s.eyes.counts.Served++
	s.eyes.mu.Unlock()
	if wrong {
		hash += "'"
	}
	writeJSON(w, http.StatusOK, embedding{embeddingOf(hash)})
}

// ImageCounts returns what the engine has had to do with images.
func (s *Server) ImageCounts() ImageCounts {
	s.eyes.mu.Lock()
	defer s.eyes.mu.Unlock()
	return s.eyes.counts
}

// appendEncoded appends where the images of a request are that have been encoded
// for others.
func (g *generation) appendEncoded(b []byte) []byte {
	v, e := g.choices[0].sight, g.server.eyes
	if !g.server.options.Encoder || v == nil || e.port == 0 {
		return b
	}
	at := map[string]encodedAt{}
	for _, h := range v.hashes {
		at[h] = encodedAt{e.host, e.port, embeddingBytes, base64.StdEncoding.EncodeToString([]byte("encoder of " + h))}
	}
	return append(append(b, `,"ec_transfer_params":`...), appendJSON(nil, at)...)
}
