package server_test

import (
	"encoding/json"
	"io"
	"net/http"
)

// readJSON reads an answer.
func readJSON(response *http.Response, into any) error {
	return json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(into)
}
