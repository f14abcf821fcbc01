package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// lookAt asks an engine what is to be seen in an image, and returns its answer.
func lookAt(t *testing.T, n *Node, image string, at map[string]encodedAt) (answer struct {
	EC    map[string]encodedAt `json:"ec_transfer_params"`
	Usage struct {
		PromptTokens int `json:"prompt_tokens"`
	}
},
) {
	t.Helper()
	body := fmt.Sprintf(`{"model":"Qwen/Qwen3-32B","max_tokens":1,"ec_transfer_params":%s,"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":%q}}]}]}`, appendJSON(nil, at), image)
	resp, err := http.Post(n.URL()+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	return answer
}

func startSeeing(t *testing.T, o Options) *Node {
	t.Helper()
	o.Speedup = 20
	n, err := Listen("127.0.0.1:0", Config{Options: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// An encoder says where an image is; who is told fetches it, and holds it to the
// image that it must be of.
func TestEncodersHandImagesOver(t *testing.T) {
	e, s := startSeeing(t, Options{Encoder: true}), startSeeing(t, Options{})
	for i, fault := range []string{"", "ec-lost", "ec-wrong"} {
		image := fmt.Sprint("https://x/", i)
		at := lookAt(t, e, image, nil).EC
		if p := at[imageHash(image)]; len(at) != 1 || p.Host != "127.0.0.1" || !strings.HasSuffix(e.URL(), fmt.Sprint(":", p.Port)) || p.Size != embeddingBytes || p.Agent == "" {
			t.Errorf("%+v", at)
		}
		if fault != "" {
			if err := e.Server.SetFault(Fault{Kind: fault}); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the second time it is there
			if a := lookAt(t, s, image, at); a.EC != nil || a.Usage.PromptTokens < imageTokens {
				t.Errorf("%+v", a)
			}
		}
		e.Server.ClearFault("")
	}
	if c := s.Server.ImageCounts(); c != (ImageCounts{Encoded: 2, Fetched: 1, Missed: 2, Wrong: 1}) {
		t.Errorf("who sees: %+v", c)
	}
	if c := e.Server.ImageCounts(); c != (ImageCounts{Encoded: 3, Served: 2}) {
		t.Errorf("who encodes: %+v", c)
	}
	lookAt(t, s, "https://x/3", map[string]encodedAt{imageHash("https://x/3"): {Host: "127.0.0.1", Port: 1}})
	if c := s.Server.ImageCounts(); c.Missed != 3 {
		t.Errorf("who has it is not there: %+v", c)
	}
}

// An engine that only encodes answers nothing else.
func TestEncodersOnlyEncode(t *testing.T) {
	e := startSeeing(t, Options{Encoder: true})
	for path, body := range map[string]string{
		"/v1/chat/completions": `{"messages":[{"role":"user","content":"hi"}]}`,
		"/v1/completions":      `{"prompt":"hi"}`,
	} {
		resp, err := http.Post(e.URL()+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// Images are encoded one at a time, those that were before not again.
func TestImagesTakeTheirTime(t *testing.T) {
	s := startSeeing(t, Options{EncodeTime: 200 * time.Millisecond})
	began := time.Now()
	if one, two := s.Server.encodeFor(began), s.Server.encodeFor(began); one != 10*time.Millisecond || two != 20*time.Millisecond {
		t.Errorf("%v and %v", one, two)
	}
	s.Server.eyes.keep("h", new(int))
	if !s.Server.eyes.know("h") || s.Server.eyes.know("i") {
		t.Error("what is known is not what was kept")
	}
	for i := range maxEmbeddings {
		s.Server.eyes.keep(fmt.Sprint(i), new(int))
	}
	if s.Server.eyes.know("h") || !s.Server.eyes.know("0") {
		t.Error("the oldest should have gone")
	}
}
