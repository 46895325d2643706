package key

import "fmt"

// unmarshalEnum sets *v to the index of text in names.
func unmarshalEnum[T ~uint8](v *T, text []byte, names []string, what string) error {
	for i, name := range names {
		if name != "" && name == string(text) {
			*v = T(i)
			return nil
		}
	}
	return fmt.Errorf("unknown %s %q", what, text)
}
