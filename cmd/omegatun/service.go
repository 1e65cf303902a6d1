package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/systemd"
)

func newService(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "Run omegatun with the machine, as a service of systemd",
		Long: `Installs and controls the service omegatun, which runs "omegatun up" from the start of the
machine on, starts it again if it fails, and lets it do no more than it needs. Peers are those
that are listed: omegatun add. The other commands talk to it as to any running omegatun.`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	var dir string
	install := &cobra.Command{
		Use:   "install",
		Short: "Install the service, and start it",
		Long: `Writes the unit file, has the service started with the machine, and starts it now, or anew.
The program must be where the service can find it later, such as in /usr/local/bin. Global
flags, such as --config, are kept in the unit file. Installing again replaces it.`,
		Example: `  sudo install -m 755 omegatun /usr/local/bin/
  sudo omegatun service install`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := e.unit()
			if err != nil {
				return err
			}
			if dir == systemd.UnitDir {
				if err := lasting(u.Program); err != nil {
					return err
				}
			}
			k, err := e.makeIdentity() // and the folders, which the service cannot make everywhere
			if err != nil {
				return err
			}
			for _, folder := range u.Writable {
				if err := os.MkdirAll(folder, 0o700); err != nil {
					return exit.New(exit.Other, "cannot make a folder that the service needs: %w", err)
				}
			}
			if err := systemd.Install(cmd.Context(), u, dir); err != nil {
				return err
			}
			e.say("the service omegatun is installed, and runs: omegatun status, omegatun service logs")
			e.say("this machine's key, for the others: %s", k.Public())
			return nil
		},
	}
	uninstall := &cobra.Command{
		Use:     "uninstall",
		Short:   "Stop the service, and remove it",
		Long:    "Stops the service and removes its unit file. The identity and the list of peers stay.",
		Example: `  sudo omegatun service uninstall`,
		Args:    takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			was, err := systemd.Uninstall(cmd.Context(), dir)
			switch {
			case err != nil:
				return err
			case !was:
				e.say("the service is not installed")
			default:
				e.say("the service is removed; the identity and the list of peers are still in %s", systemState)
			}
			return nil
		},
	}
	for _, c := range []*cobra.Command{install, uninstall} {
		c.Flags().StringVar(&dir, "unit-dir", systemd.UnitDir, "`folder` of the unit file")
	}
	unit := &cobra.Command{
		Use:     "unit",
		Short:   "Print the unit file",
		Long:    `Prints the unit file that "service install" would write, and changes nothing.`,
		Example: `  omegatun service unit --config /etc/omegatun/other.toml`,
		Args:    takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			u, err := e.unit()
			if err != nil {
				return err
			}
			text, err := u.Text()
			if err != nil {
				return err
			}
			return e.print(object{"unit": text}, text)
		},
	}
	cmd.AddCommand(install, uninstall)
	for _, verb := range []struct{ name, short string }{
		{"start", "Start the service"}, {"stop", "Stop the service, until the machine is restarted"}, {"restart", "Stop the service, and start it"},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: verb.name, Short: verb.short, Long: verb.short + ". It has to be installed.",
			Example: "  sudo omegatun service " + verb.name,
			Args:    takes(0, 0),
			RunE:    func(cmd *cobra.Command, _ []string) error { return systemd.Do(cmd.Context(), verb.name) },
		})
	}
	cmd.AddCommand(newServiceStatus(e), newServiceLogs(e), unit)
	return cmd
}

func newServiceStatus(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show whether the service runs",
		Long: `Shows whether the service is installed, is started with the machine, and runs. How it is doing
then is for omegatun status. With --json:
  {"schema":1,"installed","enabled","active","detail","pid","since","text"}

Exit status 3: it does not run.`,
		Example: `  omegatun service status`,
		Args:    takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := systemd.Query(cmd.Context())
			if err != nil {
				return err
			}
			var b strings.Builder
			switch {
			case !s.Installed:
				b.WriteString("not installed\n")
			default:
				fmt.Fprintf(&b, "%s (%s)", s.Active, s.Detail)
				if s.Active == "active" {
					fmt.Fprintf(&b, " since %s, process %s", s.Since, s.PID)
				}
				b.WriteString("\nstarted with the machine: " + map[bool]string{true: "yes", false: "no"}[s.Enabled] + "\n")
				if s.Text != "" {
					b.WriteString(s.Text + "\n")
				}
			}
			err = e.print(object{
				"installed": s.Installed, "enabled": s.Enabled, "active": s.Active, "detail": s.Detail,
				"pid": s.PID, "since": s.Since, "text": s.Text,
			}, b.String())
			switch {
			case err != nil:
				return err
			case !s.Installed:
				return exit.New(exit.NoDaemon, "the service is not installed").WithTry("sudo omegatun service install")
			case s.Active != "active" && s.Active != "reloading":
				return exit.New(exit.NoDaemon, "the service does not run").WithTry("omegatun service logs\nsudo omegatun service start")
			}
			return nil
		},
	}
}

func newServiceLogs(e *env) *cobra.Command {
	var lines int
	var follow bool
	cmd := &cobra.Command{
		Use:     "logs",
		Short:   "Print what the service has logged",
		Long:    "Prints the latest lines that the service has logged; with -f also those to come, until Ctrl-C.",
		Example: `  omegatun service logs -f`,
		Args:    takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if lines < 0 {
				return exit.New(exit.Usage, "-n must not be negative")
			}
			return systemd.Logs(cmd.Context(), e.stdout, lines, follow)
		},
	}
	cmd.Flags().IntVarP(&lines, "lines", "n", 50, "how many `lines`")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with those to come")
	return cmd
}

// lasting returns an error if the program will not be there when the service wants it.
func lasting(program string) error {
	for _, dir := range []string{"/tmp/", "/var/tmp/", "/dev/", "/run/"} {
		if strings.HasPrefix(program, dir) {
			return exit.New(exit.Usage, "the service cannot run %s: that folder does not last", program).
				WithTry("sudo install -m 755 %s /usr/local/bin/omegatun\nsudo /usr/local/bin/omegatun service install", program)
		}
	}
	return nil
}

// unit returns the service as these flags ask for it.
func (e *env) unit() (*systemd.Unit, error) {
	program, err := os.Executable()
	if err == nil {
		program, err = filepath.EvalSymlinks(program)
	}
	if err != nil {
		return nil, exit.New(exit.Other, "cannot tell where this program is: %w", err)
	}
	u := &systemd.Unit{Program: program}
	for _, f := range []struct {
		name, value string
		writable    bool
	}{
		{"config", e.configFlag, false},
		{"state", e.stateFlag, true},
		{"socket", e.socketFlag, true},
		{"bootstrap", strings.Join(e.bootstrap, ","), false},
	} {
		if f.value == "" {
			continue
		}
		if f.name != "bootstrap" {
			if f.value, err = filepath.Abs(f.value); err != nil {
				return nil, exit.New(exit.Usage, "--%s: %w", f.name, err)
			}
		}
		u.Args = append(u.Args, "--"+f.name, f.value)
		switch {
		case f.writable && f.name == "socket":
			u.Writable = append(u.Writable, filepath.Dir(f.value))
		case f.writable:
			u.Writable = append(u.Writable, f.value)
		}
	}
	for range e.verbose {
		u.Args = append(u.Args, "-v")
	}
	return u, nil
}
