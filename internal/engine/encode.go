package engine

import (
	"errors"

	"penstock.dev/penstock/internal/api"
)

// encodedParams is vLLM's field for where a request's encoded images are: by the
// hash of each image's content who has it.
const encodedParams = "ec_transfer_params"

// EncodedOf returns where an encoder says that what it has encoded is: a JSON object
// that goes, with others', to the engine that computes the prompt.
func EncodedOf(answer []byte) ([]byte, error) {
	params := api.Member(answer, encodedParams)
	if len(params) == 0 || params[0] != '{' || string(params) == "{}" {
		return nil, errors.New("the encoder does not say where the image is (no ec_transfer_params in its answer): start it as an EC producer")
	}
	return params, nil
}

// WithEncoded returns body with what encoders have said.
func WithEncoded(body, encoded []byte) ([]byte, error) {
	return api.Splice(body, []api.Field{{Name: encodedParams, Raw: encoded}})
}

// EncodesItself reports whether a sidecar has images encoded, told by whom.
func (k Connector) EncodesItself() bool { return k == ConnectorLLMD }
