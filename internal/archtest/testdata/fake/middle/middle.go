// Package middle leads from the outer side to the engine.
package middle

import _ "fake.example/m/engine"
