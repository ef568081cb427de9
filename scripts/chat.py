from colossal_llama.commands.chat import main

if __name__ == "__main__":
    raise SystemExit(main())
