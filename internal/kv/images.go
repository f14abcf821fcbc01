package kv

// rememberedImages is how many images an endpoint is believed to keep encoded. What
// engines keep depends on the images' sizes.
const rememberedImages = 1024

// Images are the images that an endpoint is believed to have encoded, by what
// stands for their content: the latest there were. The zero value has none.
type Images struct {
	has  map[Key]struct{}
	ring []Key
	next int
}

// Has reports whether an image is among them.
func (m *Images) Has(image Key) bool {
	_, ok := m.has[image]
	return ok
}

// Add adds an image.
func (m *Images) Add(image Key) {
	if m.Has(image) {
		return
	}
	if m.has == nil {
		m.has = map[Key]struct{}{}
	}
	if len(m.ring) < rememberedImages {
		m.ring = append(m.ring, image)
	} else {
		delete(m.has, m.ring[m.next])
		m.ring[m.next] = image
		m.next = (m.next + 1) % rememberedImages
	}
	m.has[image] = struct{}{}
}

// Clear forgets all.
func (m *Images) Clear() { *m = Images{} }
