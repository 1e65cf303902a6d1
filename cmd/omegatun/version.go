package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Long: `Prints the version, the commit it was built from, and what it was built with and for.
With --json: {"schema":1,"version","commit","modified","go","os","arch"}.`,
		Example: `  omegatun version`,
		Args:    takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			version, commit, modified := buildVersion()
			text := "omegatun " + version
			if commit != "" {
				text += " (commit " + commit[:min(12, len(commit))]
				if modified {
					text += ", modified"
				}
				text += ")"
			}
			return e.print(
				object{
					"version": version, "commit": commit, "modified": modified,
					"go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
				},
				fmt.Sprintf("%s %s %s/%s\n", text, runtime.Version(), runtime.GOOS, runtime.GOARCH))
		},
	}
}

// versionText returns the version as peers are told.
func versionText() string {
	version, commit, _ := buildVersion()
	if version == "(devel)" && commit != "" {
		version = commit[:min(12, len(commit))]
	}
	return "omegatun " + version
}

// buildVersion returns what the Go command recorded. The commit is empty if it recorded none.
func buildVersion() (version, commit string, modified bool) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(devel)", "", false
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	return cmp.Or(info.Main.Version, "(devel)"), commit, modified
}
