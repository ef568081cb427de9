from colossal_llama.commands.init_model import main

if __name__ == "__main__":
    raise SystemExit(main())
