package archtest

import "strings"

// Rules is what a module promises. The zero value has no floors, so that every
// package is reported as having none.
type Rules struct {
	// Floors places every package; see Place.
	Floors []Place
	// MaxLines is the longest Go file, in lines.
	MaxLines int
	// Plaintext lists the folders whose code may take the plaintext out of a
	// secret.Value, each with everything below it.
	Plaintext []Exception
	// Clock lists the folders whose code may call time.Now and its kin, instead of
	// taking the time as data or a now function.
	Clock []Exception
	// Init, Variables, Skip, Sleep and Machine list the files that may break the
	// rule of that name.
	Init, Variables, Skip, Sleep, Machine []Exception
}

// Exception is one file or folder below the module's root that a rule leaves
// out, and the reason, which must not be empty.
type Exception struct {
	Path   string
	Reason string
}

// Place says where the packages of one folder stand and what they may import.
// Of several places that contain a package the one with the longest path counts.
type Place struct {
	// Path is a folder below the module's root, with everything below it.
	Path string
	// Floor is the height: non-test code imports only what stands on a lower floor.
	Floor int
	// Only narrows that down: the folders that may be imported. An entry that ends
	// in "/..." includes what is below. Nil means everything on lower floors; empty
	// means nothing of the module.
	Only []string
	// Beside lists folders on the same floor that may be imported nevertheless.
	Beside []string
	// Apart says that the folders below are alternatives, such as the drivers of
	// several databases: each may import its parents, but not its siblings.
	Apart bool
	// Never lists folders that must not be reached even through others.
	Never []string
	// Foreign lists the modules outside this one and outside the standard library
	// that may be imported. Nil means any; empty means the standard library only.
	Foreign []string
	// Pure says that the code has no effect and no input but its arguments: see
	// checkPurity for what is forbidden.
	Pure bool
	// NoContext forbids package context as well.
	NoContext bool
	// ForTests says that the packages serve tests: any test may import them.
	ForTests bool
}

// place returns the place of a folder, nil when it has none.
func (r Rules) place(dir string) *Place {
	var best *Place
	for i := range r.Floors {
		p := &r.Floors[i]
		if within(dir, p.Path) && (best == nil || len(p.Path) > len(best.Path)) {
			best = p
		}
	}
	return best
}

// within reports whether file is folder or lies below it.
func within(file, folder string) bool {
	return file == folder || strings.HasPrefix(file, folder+"/")
}

// matches reports whether one of the patterns, each a folder or "folder/...", is dir.
func matches(patterns []string, dir string) bool {
	for _, pattern := range patterns {
		if folder, below := strings.CutSuffix(pattern, "/..."); below && within(dir, folder) || pattern == dir {
			return true
		}
	}
	return false
}

// excepted reports whether an exception covers the file.
func excepted(list []Exception, file string) bool {
	for _, e := range list {
		if within(file, e.Path) {
			return true
		}
	}
	return false
}
