"""What HLIP serves over HTTP: STOW-RS in, health. One application on one port; `plugin.web.app` puts it together."""
