package kv

import "testing"

// TestImagesAreForgotten: what an endpoint has encoded is remembered as far as it
// can be there still.
func TestImagesAreForgotten(t *testing.T) {
	var m Images
	for i := range Key(3 * rememberedImages) {
		m.Add(i)
		m.Add(i)
	}
	if len(m.has) != rememberedImages || len(m.ring) != rememberedImages {
		t.Errorf("%d and %d", len(m.has), len(m.ring))
	}
	for i := range Key(3 * rememberedImages) {
		if m.Has(i) != (i >= 2*rememberedImages) {
			t.Fatalf("image %d: %v", i, m.Has(i))
		}
	}
	if m.Clear(); m.Has(3*rememberedImages - 1) {
		t.Error("it is there still")
	}
}
