from colossal_llama.commands.run_stages import main

if __name__ == "__main__":
    raise SystemExit(main())
